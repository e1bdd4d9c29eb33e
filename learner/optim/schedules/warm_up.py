"""What schedules have in common: a linear warm-up, and for most of them a way down to a share of the peak."""

from pydantic import Field

from moments_service.config import StrictModel


class WarmUp(StrictModel):
    """Linear warm-up to the peak, which is kept."""

    warmup_steps: int = Field(0, ge=0)
    """Optimiser steps of linear warm-up."""

    def share(self, updates: int, total: int) -> float:
        """Share of the peak after `updates` optimiser steps of `total`: from 1 / warmup_steps to 1, then as `after` says."""
        if updates < self.warmup_steps:
            return (updates + 1) / self.warmup_steps
        return self.after(min(1.0, (updates - self.warmup_steps) / max(1, total - self.warmup_steps)))

    def after(self, progress: float) -> float:
        """progress: in [0, 1], from the end of the warm-up to `total`, beyond which it stays 1."""
        return 1.0


class Decay(WarmUp):
    """Linear warm-up, then a way down to a share of the peak."""

    final_share: float = Field(0.1, ge=0, le=1)
    """Learning rate at the end, as a share of the peak; 1 keeps it constant."""

    def after(self, progress: float) -> float:
        return self.final_share + (1.0 - self.final_share) * self.left(progress)

    def left(self, progress: float) -> float:
        """Share of the way down that is still ahead, from 1 to 0."""
        raise NotImplementedError

"""Linear warm-up, then half a cosine."""

import math
from typing import Literal

from pydantic import Field

from moments_service.config import StrictModel


class Cosine(StrictModel):
    """Linear warm-up, then half a cosine down to a share of the peak."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    """Optimiser steps of linear warm-up."""
    final_share: float = Field(0.1, ge=0, le=1)
    """Learning rate at the end of the cosine, as a share of the peak; 1 keeps it constant."""

    def share(self, updates: int, total: int) -> float:
        """Linear from 1 / warmup_steps to 1, then half a cosine down to `final_share`, which it keeps beyond `total`."""
        if updates < self.warmup_steps:
            return (updates + 1) / self.warmup_steps
        progress = min(1.0, (updates - self.warmup_steps) / max(1, total - self.warmup_steps))
        return self.final_share + (1.0 - self.final_share) * 0.5 * (1.0 + math.cos(math.pi * progress))

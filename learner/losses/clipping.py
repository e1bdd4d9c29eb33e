"""PPO's clip of a ratio, of whatever the ratio is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from learner.losses.protocol import Measured, Need
from moments_service.config import StrictModel

if TYPE_CHECKING:
    import torch


class ClipBounds(StrictModel):
    """How far a ratio may leave 1 before its gradient ends."""

    clip_low: float = Field(0.2, gt=0, lt=1)
    """Lower clip of the probability ratio is 1 minus this."""
    clip_high: float = Field(0.2, gt=0)
    """Upper clip of the probability ratio is 1 plus this."""
    needs: ClassVar[frozenset[Need]] = frozenset({"old"})

    def surrogate(self, ratio: torch.Tensor, advantages: torch.Tensor) -> tuple[torch.Tensor, Measured]:
        """-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A), and the shares of tokens whose gradient it removed.

        All [N]. Source: PPO (arXiv 1707.06347), Eq. 7; separate bounds from DAPO (arXiv 2503.14476), Eq. 10.
        """
        low, high = 1.0 - self.clip_low, 1.0 + self.clip_high
        losses = -(ratio * advantages).minimum(ratio.clamp(low, high) * advantages)
        return losses, removed_shares(ratio.detach(), low, high, advantages)


def removed_shares(value: torch.Tensor, low: float, high: float, advantages: torch.Tensor) -> Measured:
    """The shares of tokens whose gradient a clip of `value` [N] to [low, high] removed: those that the advantage pushes outward."""
    clipped = {"clip_low": (value < low) & (advantages < 0), "clip_high": (value > high) & (advantages > 0)}
    return Measured(means={name: where.float() for name, where in clipped.items()})


def clipped_shares(value: torch.Tensor, low: torch.Tensor | float, high: torch.Tensor | float) -> Measured:
    """The shares of tokens whose weight `value` [N] lies outside [low, high], whatever their advantage."""
    return Measured(means={"clip_low": (value < low).float(), "clip_high": (value > high).float()})

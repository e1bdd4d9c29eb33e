"""How far the sampler's policy is from the one that ratios start at, token by token or over whole samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from learner.losses.protocol import LOG_RATIO_LIMIT, LossInputs, Measured, Need
from learner.losses.sequences import sample_means, sample_sums
from moments_service.config import StrictModel

if TYPE_CHECKING:
    import torch

Level = Literal["token", "sequence", "geometric"]
"""Of a ratio: the token's own; the product over its sample; or the geometric mean over its sample."""


def sampler_ratio(inputs: LossInputs, level: Level) -> torch.Tensor:
    """[N] pi_old / pi_rollout without a gradient, whose log is limited to +-20; of a sample every token has the same.

    It holds both what the engine computes otherwise than the learner and, for a token of an older version, what the policy has
    moved since.
    """
    difference = inputs.old - inputs.rollout
    if level == "sequence":
        difference = sample_sums(difference, inputs)
    elif level == "geometric":
        difference = sample_means(difference, inputs)
    return difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().detach()


class KeptRange(StrictModel):
    """Which ratios count at all."""

    low: float = Field(0.5, ge=0, le=1)
    """Smaller ratios are left out; for geometric means, which are close to 1, .99 or so."""
    high: float = Field(2.0, ge=1)
    """Larger ratios are left out; for geometric means 1.01 or so."""
    needs: ClassVar[frozenset[Need]] = frozenset({"old"})

    @model_validator(mode="after")
    def _some_are_kept(self) -> Self:
        if self.low == self.high:
            raise ValueError(f"low = high = {self.low} leaves out all but ratios of exactly 1; set them apart")
        return self

    def kept(self, ratio: torch.Tensor) -> tuple[torch.Tensor, Measured]:
        """([N] the ratio where it lies in [low, high] and 0 elsewhere, what it came to)."""
        inside = (ratio >= self.low) & (ratio <= self.high)
        weights = ratio.masked_fill(~inside, 0.0)
        return weights, Measured({"correction_weight": weights, "correction_left_out": (~inside).to(ratio.dtype)})

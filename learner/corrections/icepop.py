"""IcePop."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from learner.corrections.ratios import kept_inside, sampler_ratio
from learner.losses.protocol import LossInputs, Measured, Need
from moments_service.config import StrictModel

if TYPE_CHECKING:
    import torch


class IcePop(StrictModel):
    """Leaves out single tokens on which engine and learner disagree, and weighs the others by their ratio."""

    kind: Literal["icepop"] = "icepop"
    low: float = Field(0.5, ge=0, le=1)
    """Smaller ratios are left out."""
    high: float = Field(5.0, ge=1)
    """Larger ratios are left out."""
    needs: ClassVar[frozenset[Need]] = frozenset({"old"})

    @model_validator(mode="after")
    def _some_are_kept(self) -> Self:
        if self.low == self.high:
            raise ValueError(f"low = high = {self.low} leaves out all but ratios of exactly 1; set them apart")
        return self

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """The token's pi_old / pi_rollout where it lies in [low, high], else 0; without a gradient.

        Made for mixtures of experts, whose engine and learner may route a token to different experts. Source: Ring-1T
        (arXiv 2510.18855); its bounds are reconstructed.
        """
        return kept_inside(sampler_ratio(inputs, "token"), self.low, self.high)

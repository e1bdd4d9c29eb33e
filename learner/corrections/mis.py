"""Masked importance sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from learner.corrections.ratios import Level, kept_inside, sampler_ratio
from learner.losses.protocol import LossInputs, Measured, Need
from moments_service.config import StrictModel

if TYPE_CHECKING:
    import torch


class MaskedImportance(StrictModel):
    """Leaves out samples whose ratio is too far from 1, and weighs the others by it."""

    kind: Literal["mis"] = "mis"
    level: Level = "sequence"
    """Ratio of the whole sample, its geometric mean over the sample, or of the `token`."""
    low: float = Field(0.5, ge=0, le=1)
    """Smaller ratios are left out. For `geometric`, whose ratios are close to 1, .99 or so."""
    high: float = Field(2.0, ge=1)
    """Larger ratios are left out. For `geometric` 1.01 or so."""
    needs: ClassVar[frozenset[Need]] = frozenset({"old"})

    @model_validator(mode="after")
    def _some_are_kept(self) -> Self:
        if self.low == self.high:
            raise ValueError(f"low = high = {self.low} leaves out all but ratios of exactly 1; set them apart")
        return self

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """pi_old / pi_rollout where it lies in [low, high], else 0; without a gradient. Measures mean weight and share left out.

        Source: verl's and TRL's masked importance sampling (`sequence_mask`, `token_mask`).
        """
        return kept_inside(sampler_ratio(inputs, self.level), self.low, self.high)

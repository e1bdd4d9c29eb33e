"""Masked importance sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from learner.corrections.ratios import KeptRange, Level, sampler_ratio
from learner.losses.protocol import LossInputs, Measured

if TYPE_CHECKING:
    import torch


class MaskedImportance(KeptRange):
    """Leaves out samples whose ratio is too far from 1, and weighs the others by it."""

    kind: Literal["mis"] = "mis"
    level: Level = "sequence"
    """Ratio of the whole sample, its `geometric` mean over the sample, or of the `token`."""

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """pi_old / pi_rollout where it lies in [low, high], else 0; without a gradient. Measures mean weight and share left out.

        Source: verl's and TRL's masked importance sampling (`sequence_mask`, `token_mask`).
        """
        return self.kept(sampler_ratio(inputs, self.level))

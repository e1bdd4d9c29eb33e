"""IcePop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from learner.corrections.ratios import KeptRange, sampler_ratio
from learner.losses.protocol import LossInputs, Measured

if TYPE_CHECKING:
    import torch


class IcePop(KeptRange):
    """Leaves out single tokens on which engine and learner disagree, and weighs the others by their ratio."""

    kind: Literal["icepop"] = "icepop"
    high: float = Field(5.0, ge=1)
    """Larger ratios are left out."""

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """The token's pi_old / pi_rollout where it lies in [low, high], else 0; without a gradient.

        Made for mixtures of experts, whose engine and learner may route a token to different experts. Source: Ring-1T
        (arXiv 2510.18855); its bounds are reconstructed.
        """
        return self.kept(sampler_ratio(inputs, "token"))

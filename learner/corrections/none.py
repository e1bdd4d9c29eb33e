"""Every token counts as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from learner.losses.protocol import LossInputs, Measured, Need
from moments_service.config import StrictModel

if TYPE_CHECKING:
    import torch


class NoCorrection(StrictModel):
    """Every token counts as it is: right while nothing is older than the policy that is trained."""

    kind: Literal["none"] = "none"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """Weight 1 for all."""
        return inputs.logprobs.new_ones(inputs.logprobs.shape), Measured()

"""REINFORCE."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from learner.losses.protocol import LossInputs, Measured, Need
from moments_service.config import StrictModel

if TYPE_CHECKING:
    import torch


class Reinforce(StrictModel):
    """The plain policy gradient: right for one update a batch on fresh samples, and without any bound beyond that."""

    kind: Literal["reinforce"] = "reinforce"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """-A * log pi. Source: Williams (1992); GPG (arXiv 2504.02546)."""
        return -inputs.advantages * inputs.logprobs, Measured()

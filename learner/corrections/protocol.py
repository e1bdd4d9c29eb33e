"""What a correction is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from learner.losses.protocol import LossInputs, Measured, Need

if TYPE_CHECKING:
    import torch


class Correction(Protocol):
    """What a token's loss counts, where the policy that sampled it is not the one that is trained."""

    @property
    def needs(self) -> frozenset[Need]: ...

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """([N] weights >= 0 without gradient, 0 leaves a token out; what it measured)."""
        ...

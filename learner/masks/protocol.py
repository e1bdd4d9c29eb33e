"""What a mask is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from learner.losses.protocol import LossInputs, Measured, Need
from moments_service.config import StrictModel

if TYPE_CHECKING:
    import torch

Numbers = npt.NDArray[np.float64]

STATISTICS = 3
"""How many numbers of the whole update a mask may know."""


@dataclass(frozen=True, slots=True)
class Masked:
    """What a mask makes of the tokens of a microbatch."""

    weights: torch.Tensor
    """[N] without gradient; 0 leaves a token's loss out, 1 leaves it as it is."""
    measured: Measured
    penalties: torch.Tensor | None = None
    """[N] added to the losses before they are weighed; None adds nothing."""


class Mask(StrictModel):
    """Chooses tokens whose loss is left out or penalised, whatever the loss. Pure, like a loss.

    What it must know of all tokens of an update, over microbatches and ranks, it says in `statistics` before the first of them is
    trained on: so that the choice of a token does not depend on which others share its microbatch.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    of_the_update: ClassVar[bool] = False
    """Whether `statistics` must be asked."""

    def statistics(self, advantages: Numbers, logprobs: Numbers) -> Numbers:
        """[STATISTICS] of all N tokens of an update, in any order: their advantages, and log-probs from before the update."""
        return np.zeros(STATISTICS)

    def __call__(self, inputs: LossInputs, statistics: torch.Tensor) -> Masked:
        """statistics: [STATISTICS], as made above; zeros where they were not asked for."""
        raise NotImplementedError

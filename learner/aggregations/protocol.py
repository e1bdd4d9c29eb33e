"""What an aggregation is."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Totals:
    """What one optimiser step trains on, over all ranks: groups and samples with a trained token, and such tokens."""

    groups: int
    samples: int
    tokens: int


class Aggregation(Protocol):
    """Weights of the trained tokens, made once and up front: sums over microbatches and ranks are the loss of the batch."""

    def __call__(
        self, sample: npt.NDArray[np.int64], group: npt.NDArray[np.int64], totals: Totals
    ) -> npt.NDArray[np.float64]:
        """sample, group: [N] numbers of each trained token's sample and group, whole on this rank. Returns [N] >= 0."""
        ...

"""What every order of prompts can do."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.moments.outcomes import Outcomes
from moments_service.seeding import derive_seed

Rows = npt.NDArray[np.int64]
UNKNOWN = -1


class PromptOrder(Protocol):
    """Chooses among N prompts, which it knows as rows 0 … N - 1 (sorted by id). Places are drawn in order, each once."""

    def draw(self, place: int) -> tuple[int, int]:
        """Row of the prompt at this place of the feed, and how often it was drawn before in this epoch (N places)."""
        ...

    def learn(self, clusters: Rows, promise: Array) -> None:
        """From the next place on. clusters: [N] of each row.    promise: [K] >= 0, what a group of the cluster is worth."""
        ...

    def observe(self, rows: Rows, outcomes: Outcomes) -> None:
        """How the groups of the newest commit came out. rows: [M] of the outcomes' groups, UNKNOWN for no prompt of the pool."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs besides the place, as JSON."""
        ...

    def load_state(self, state: Mapping[str, Any], rows: Rows) -> None:
        """Go on from `state`. rows: [n] of the prompts that it is of, by id; more may have come. Raises ValueError for what
        another order saved."""
        ...


def shuffled(ids: Sequence[str], seed: int) -> list[int]:
    """Rows of `ids` in an order fixed by the seed."""
    # Sorted by hash, not shuffled: the order then depends on no library's generator and not on the pool's order.
    return sorted(range(len(ids)), key=lambda row: derive_seed(seed, ids[row]))


def refuse_other_order(state: Mapping[str, Any], order: str) -> None:
    """Raise ValueError if a saved feed dealt its prompts in another order."""
    if state["order"] != order:
        raise ValueError(
            f"the checkpoint's prompt feed dealt prompts in order {state['order']} (prompts.order), this run in order "
            f"{order}; resume with the same, or start a new run"
        )

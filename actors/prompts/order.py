"""Which prompt comes next: a new shuffle every epoch, or more of those that promise signal and none left out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.seeding import derive_seed

SWEEP_EVERY = 4
"""Signal order: every so many-th place of the feed goes to the prompt that has waited longest."""

Rows = npt.NDArray[np.int64]


class PromptOrder(Protocol):
    """Chooses among N prompts, which it knows as rows 0 … N - 1 (sorted by id). Places are drawn in order, each once."""

    def draw(self, place: int) -> tuple[int, int]:
        """Row of the prompt at this place of the feed, and how often it was drawn before in this epoch (N places)."""
        ...

    def learn(self, clusters: Rows, promise: Array) -> None:
        """From the next place on. clusters: [N] of each row.    promise: [K] >= 0, what a group of the cluster is worth."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs besides the place, as JSON."""
        ...

    def load_state(self, state: Mapping[str, Any], rows: Rows) -> None:
        """Go on from `state`. rows: [n] of the prompts that it is of, by id; more may have come. Raises ValueError for what
        another order saved."""
        ...


class ShuffledOrder:
    """Every epoch is a permutation of the prompts, fixed by the seed."""

    def __init__(self, ids: Sequence[str], seed: int) -> None:
        """ids: N, sorted."""
        self._ids = ids
        self._seed = seed
        self._epoch = -1
        self._rows: list[int] = []

    def draw(self, place: int) -> tuple[int, int]:
        epoch, cursor = divmod(place, len(self._ids))
        if epoch != self._epoch:
            self._rows, self._epoch = shuffled(self._ids, derive_seed(self._seed, "feed", epoch)), epoch
        return self._rows[cursor], 0

    def learn(self, clusters: Rows, promise: Array) -> None:
        """Nothing that is learned changes this order."""

    def state(self) -> dict[str, Any]:
        return {"order": "shuffled"}

    def load_state(self, state: Mapping[str, Any], rows: Rows) -> None:
        refuse_other_order(state, "shuffled")


class SignalOrder:
    """Prompts are drawn in proportion to the promise of their cluster, and every 4th place sweeps through all of them.

    Cluster k is drawn with probability n_k s_k / sum of n_j s_j, n its prompts and s its promise, the expected standard
    deviation of rewards within one prompt. That is Neyman's optimal allocation of samples to strata (1934), and SPO's weight
    of a prompt, sqrt(v (1 - v)) (arXiv 2509.13232; METHODS B), carried over to clusters. In its cluster that prompt comes
    which was dealt longest ago.

    No prompt starves: a sweep takes the one dealt longest ago of all, so each of the sweeps that pass a prompt by takes
    another prompt that waited longer, and there are N - 1 of those at most. Between two visits of a prompt lie fewer than
    4 N places, whatever the moments say. Where nothing promises anything, all places sweep.

    Every choice comes from (seed, place) and from what was learned before the place; a draw costs one numpy pass over the
    prompts of a cluster, or over all of them in a sweep.
    """

    def __init__(self, ids: Sequence[str], seed: int) -> None:
        """ids: N, sorted."""
        self._seed = seed
        # Place at which each prompt was dealt last; before the first time distinct negative numbers, in shuffled order.
        self._dealt = np.empty(len(ids), dtype=np.int64)
        self._dealt[shuffled(ids, derive_seed(seed, "sweep"))] = np.arange(-len(ids), 0)
        self._occurrences = np.zeros(len(ids), dtype=np.int64)
        self._clusters: Rows = np.zeros(0, dtype=np.int64)
        self._members: Rows = np.zeros(0, dtype=np.int64)
        self._ends: Rows = np.zeros(0, dtype=np.int64)
        self._cumulative: Array | None = None

    def draw(self, place: int) -> tuple[int, int]:
        if self._cumulative is None:
            raise RuntimeError("the signal order knows nothing of the moments yet: call learn first")
        if place % len(self._dealt) == 0:
            self._occurrences[:] = 0
        row = self._longest_ago() if place % SWEEP_EVERY == 0 else self._promising(place)
        occurrence = int(self._occurrences[row])
        self._occurrences[row] += 1
        self._dealt[row] = place
        return row, occurrence

    def learn(self, clusters: Rows, promise: Array) -> None:
        if not np.array_equal(clusters, self._clusters):
            self._clusters = clusters
            self._members = np.argsort(clusters, kind="stable")
        sizes = np.bincount(clusters, minlength=len(promise))
        self._ends = np.cumsum(sizes)
        self._cumulative = np.cumsum(sizes * promise)

    def state(self) -> dict[str, Any]:
        return {"order": "signal", "dealt": self._dealt.tolist(), "occurrences": self._occurrences.tolist()}

    def load_state(self, state: Mapping[str, Any], rows: Rows) -> None:
        """Prompts that have come since were never dealt, and wait as if they had been there from the beginning."""
        refuse_other_order(state, "signal")
        self._dealt[rows] = state["dealt"]
        self._occurrences[rows] = state["occurrences"]

    def _longest_ago(self) -> int:
        return int(self._dealt.argmin())

    def _promising(self, place: int) -> int:
        assert self._cumulative is not None
        total = self._cumulative[-1]
        if total <= 0:
            return self._longest_ago()
        point = derive_seed(self._seed, "signal", place) / 2**63 * total
        # The first cluster whose end lies past the point; one that is worth nothing, or has no prompts, has no room there.
        cluster = int(np.searchsorted(self._cumulative, min(point, np.nextafter(total, 0.0)), side="right"))
        start = self._ends[cluster - 1] if cluster else 0
        members = self._members[start : self._ends[cluster]]
        return int(members[self._dealt[members].argmin()])


ORDERS: dict[str, Callable[[Sequence[str], int], PromptOrder]] = {"shuffled": ShuffledOrder, "signal": SignalOrder}
"""How each is made: from the sorted ids of the prompts and a seed."""


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

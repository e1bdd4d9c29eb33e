"""More of the prompts whose clusters promise signal, and none left out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors.prompts.orders.base import Rows, refuse_other_order, shuffled
from moments_service.blend import Array
from moments_service.moments.outcomes import Outcomes
from moments_service.seeding import derive_seed

SWEEP_EVERY = 4
"""Every so many-th place of the feed goes to the prompt that has waited longest."""


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

    def observe(self, rows: Rows, outcomes: Outcomes) -> None:
        """Clusters say it all."""

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

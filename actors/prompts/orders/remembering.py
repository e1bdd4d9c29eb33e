"""What orders that learn from outcomes have in common: numbers for each prompt, and commits that count once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors.prompts.orders.base import UNKNOWN, Rows, refuse_other_order
from moments_service.blend import Array
from moments_service.moments.outcomes import Outcomes


class RememberingOrder:
    """Keeps a few numbers for each of N prompts, which outcomes change, and counts how often each came in an epoch.

    Its choices come from the seed, the place and these numbers, so a resumed order goes on exactly where the saved one
    stood. A commit that it is told of twice counts once.
    """

    name: str
    """As `prompts.order` calls it."""

    def __init__(self, ids: Sequence[str], seed: int, initial: Mapping[str, float]) -> None:
        """ids: N, sorted.    initial: each number of a prompt, before anything is known of it."""
        self._ids, self._seed = ids, seed
        self._memory: dict[str, Array] = {name: np.full(len(ids), value) for name, value in initial.items()}
        self._occurrences = np.zeros(len(ids), dtype=np.int64)
        self._learned_step = -1

    def draw(self, place: int) -> tuple[int, int]:
        if place % len(self._ids) == 0:
            self._occurrences[:] = 0
        row = self._choose(place)
        occurrence = int(self._occurrences[row])
        self._occurrences[row] += 1
        return row, occurrence

    def learn(self, clusters: Rows, promise: Array) -> None:
        """Nothing: it goes by prompts, not by clusters."""

    def observe(self, rows: Rows, outcomes: Outcomes) -> None:
        if outcomes.step <= self._learned_step:
            return
        for group in np.flatnonzero(rows != UNKNOWN).tolist():
            row = int(rows[group])
            self._take(
                row,
                outcomes.step,
                float(outcomes.successes[group]),
                float(outcomes.counts[group]),
                bool(outcomes.uniform[group]),
            )
        self._learned_step = outcomes.step
        self._observed()

    def state(self) -> dict[str, Any]:
        memory = {name: values.tolist() for name, values in self._memory.items()}
        return {
            "order": self.name,
            "learned_step": self._learned_step,
            "occurrences": self._occurrences.tolist(),
            "memory": memory,
            **self._position(),
        }

    def load_state(self, state: Mapping[str, Any], rows: Rows) -> None:
        """Prompts that have come since are as if nobody had seen them yet."""
        refuse_other_order(state, self.name)
        self._learned_step = state["learned_step"]
        self._occurrences[rows] = state["occurrences"]
        for name, values in self._memory.items():
            values[rows] = state["memory"][name]
        self._go_to(state, grown=len(rows) < len(self._ids))

    def _choose(self, place: int) -> int:
        """Row of the prompt at this place."""
        raise NotImplementedError

    def _take(self, row: int, step: int, successes: float, count: float, uniform: bool) -> None:
        """One group of this prompt came out so."""
        raise NotImplementedError

    def _observed(self) -> None:
        """All groups of a commit were taken in."""
        raise NotImplementedError

    def _position(self) -> dict[str, Any]:
        """Where it stands between two draws, as JSON."""
        raise NotImplementedError

    def _go_to(self, state: Mapping[str, Any], grown: bool) -> None:
        """Go on from a `_position`. grown: whether the pool has more prompts now."""
        raise NotImplementedError


class RankedOrder(RememberingOrder):
    """Ranks all prompts anew after every commit, and deals them down the ranking, from its top again after its end.

    So no prompt comes twice between two commits, unless that takes more groups than there are prompts.
    """

    def __init__(self, ids: Sequence[str], seed: int, initial: Mapping[str, float]) -> None:
        super().__init__(ids, seed, initial)
        self._dealt = 0
        self._ranking: Rows | None = None

    def _choose(self, place: int) -> int:
        if self._ranking is None:
            # Made of what was learned up to a step and of nothing else, so that a resumed order makes the same.
            self._ranking = np.argsort(self._keys(self._learned_step), kind="stable")
        self._dealt += 1
        return int(self._ranking[(self._dealt - 1) % len(self._ids)])

    def _observed(self) -> None:
        self._dealt, self._ranking = 0, None

    def _position(self) -> dict[str, Any]:
        return {"dealt": self._dealt}

    def _go_to(self, state: Mapping[str, Any], grown: bool) -> None:
        self._dealt, self._ranking = 0 if grown else state["dealt"], None

    def _keys(self, step: int) -> Array:
        """[N] by what prompts are ranked until the next commit, the least first. step: the last that was learned from."""
        raise NotImplementedError

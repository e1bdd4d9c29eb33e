"""GRESO: prompts whose last groups were uniform are passed by, the likelier the more there were."""

from collections.abc import Mapping, Sequence
from typing import Any

from actors.prompts.orders.base import shuffled
from actors.prompts.orders.remembering import RememberingOrder
from moments_service.seeding import derive_seed

EXPLORATION = 0.5
"""Chance that a prompt is dealt all the same, once for every uniform group it had in a row."""


class GresoOrder(RememberingOrder):
    """Goes through the prompts in shuffled order, pass after pass, and skips one with a chance of 1 - p^z.

    z counts the prompt's uniform groups since its last one that was not; groups of fewer than two rewards say nothing. No
    prompt starves, as in the source: it is skipped 2^z - 1 passes on average, for p = 1/2. If a whole pass skips every prompt,
    the first of those with the least z is dealt. An epoch is still N places, and holds several passes where many are skipped.
    Source: GRESO (arXiv 2506.02177), second-hand for the rule; p^z and p = 1/2 at the start are from knowledge and not
    re-checked. Its p for easy and hard prompts apart, and their adjustment towards a target, are left out.
    """

    name = "greso"

    def __init__(self, ids: Sequence[str], seed: int) -> None:
        """ids: N, sorted."""
        super().__init__(ids, seed, {"uniform_in_a_row": 0.0})
        self._pass = self._cursor = 0
        self._order: list[int] = []

    def _take(self, row: int, step: int, successes: float, count: float, uniform: bool) -> None:
        if count > 1:
            self._memory["uniform_in_a_row"][row] = self._memory["uniform_in_a_row"][row] + 1.0 if uniform else 0.0

    def _observed(self) -> None:
        """A pass goes on with what is known now."""

    def _choose(self, place: int) -> int:
        in_a_row = self._memory["uniform_in_a_row"]
        skipped: list[int] = []
        while len(skipped) < len(self._ids):
            number, row = self._next()
            if derive_seed(self._seed, "greso", number, row) / 2**63 < EXPLORATION ** in_a_row[row]:
                return row
            skipped.append(row)
        return min(skipped, key=in_a_row.__getitem__)

    def _next(self) -> tuple[int, int]:
        """The number of the pass and the next row of it."""
        if not self._order:
            self._order = shuffled(self._ids, derive_seed(self._seed, "greso", self._pass))
        number, row = self._pass, self._order[self._cursor]
        self._cursor += 1
        if self._cursor == len(self._ids):
            self._pass, self._cursor, self._order = self._pass + 1, 0, []
        return number, row

    def _position(self) -> dict[str, Any]:
        return {"pass": self._pass, "cursor": self._cursor}

    def _go_to(self, state: Mapping[str, Any], grown: bool) -> None:
        # A pool that grew begins a pass over all of it.
        self._pass, self._cursor = (state["pass"] + 1, 0) if grown else (state["pass"], state["cursor"])
        self._order = []

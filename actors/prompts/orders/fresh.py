"""Every prompt once in a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from actors.prompts.orders.base import Rows, refuse_other_order
from moments_service.blend import Array
from moments_service.moments.outcomes import Outcomes


class FreshOrder:
    """One prompt after the other, as they were made, and none again: those that a longer run has more come behind the others."""

    def __init__(self, ids: Sequence[str], source: str) -> None:
        """ids: N, in the order in which they were made."""
        self._size = len(ids)
        self._source = source

    def draw(self, place: int) -> tuple[int, int]:
        if place >= self._size:
            raise RuntimeError(
                f"source `{self._source}` is fresh, and all of its {self._size} prompts were dealt: more groups ended without any "
                "reward than it has prompts to spare; see why they did, and resume with more `steps` to have more prompts made"
            )
        return place, 0

    def learn(self, clusters: Rows, promise: Array) -> None:
        """Nothing that is learned changes this order."""

    def observe(self, rows: Rows, outcomes: Outcomes) -> None:
        """Nor does this."""

    def state(self) -> dict[str, Any]:
        return {"order": "fresh"}

    def load_state(self, state: Mapping[str, Any], rows: Rows) -> None:
        refuse_other_order(state, "fresh")

"""Every prompt once an epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

from actors.prompts.orders.base import Rows, refuse_other_order, shuffled
from moments_service.blend import Array
from moments_service.moments.outcomes import Outcomes
from moments_service.seeding import derive_seed


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

    def observe(self, rows: Rows, outcomes: Outcomes) -> None:
        """Nor does this."""

    def state(self) -> dict[str, Any]:
        return {"order": "shuffled"}

    def load_state(self, state: Mapping[str, Any], rows: Rows) -> None:
        refuse_other_order(state, "shuffled")

"""What every curriculum of sources can do."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from moments_service.moments.outcomes import Outcomes


class Curriculum(Protocol):
    """Says how much of the feed each source of a recipe gets, and may change its mind after a commit."""

    def weights(self, step: int) -> Mapping[str, float]:
        """By source, >= 0, not all 0, for places that are dealt when `step` steps are done. The same while nothing is observed."""
        ...

    def possible(self) -> Sequence[Mapping[str, float]]:
        """All that `weights` can ever be, in the order in which that may come."""
        ...

    def observe(self, sources: Sequence[str | None], outcomes: Outcomes) -> None:
        """How the groups of the newest commit came out; told once. sources: [M] of the groups, None for no prompt of the pool."""
        ...

    def metrics(self) -> dict[str, float]:
        """Where it stands, by name; empty where there is nothing to say."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs, as JSON; it names the `kind`."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, that this kind saved; settings of the curriculum may be others by now."""
        ...

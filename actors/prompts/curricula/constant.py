"""The same weights from the first step to the last."""

from collections.abc import Mapping, Sequence
from typing import Any

from moments_service.moments.outcomes import Outcomes


class ConstantWeights:
    """What a recipe's sources say in `weight`."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)

    def weights(self, step: int) -> Mapping[str, float]:
        return self._weights

    def possible(self) -> list[Mapping[str, float]]:
        return [self._weights]

    def observe(self, sources: Sequence[str | None], outcomes: Outcomes) -> None:
        """Nothing changes them."""

    def metrics(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"kind": "constant"}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to know."""

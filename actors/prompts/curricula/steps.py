"""Weights of sources by policy step."""

from collections.abc import Mapping, Sequence
from typing import Any

from actors.prompts.curricula.options import StepsCurriculum
from moments_service.moments.outcomes import Outcomes


class StepWeights:
    """The weights of the last stage that has begun."""

    def __init__(self, options: StepsCurriculum) -> None:
        names = options.names()
        self._stages = [
            (stage.from_step, {name: stage.weights.get(name, 0.0) for name in names}) for stage in options.stages
        ]

    def weights(self, step: int) -> Mapping[str, float]:
        return next(weights for from_step, weights in reversed(self._stages) if from_step <= step)

    def possible(self) -> list[Mapping[str, float]]:
        return [weights for _, weights in self._stages]

    def observe(self, sources: Sequence[str | None], outcomes: Outcomes) -> None:
        """Only the step counts."""

    def metrics(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"kind": "steps"}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to know; stages may be others."""

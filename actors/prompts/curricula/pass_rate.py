"""From easy sources to hard ones, as fast as the policy learns them."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from actors.prompts.curricula.options import PassRateCurriculum
from moments_service.moments.outcomes import Outcomes


class PassRateWeights:
    """Deals the sources of one level, and of the levels before it in `review` of the places; the levels behind it wait.

    After every commit the groups of the level's own sources count: their rewards, clipped to [0, 1], over their number, for the last
    `window` of them. Where that is `advance_at` or more the next level begins, with nothing counted yet; at most one a commit. It
    never goes back. Groups that come back later than their level ended count for nothing.
    """

    def __init__(self, options: PassRateCurriculum, weights: Mapping[str, float]) -> None:
        """weights: of sources within their level; 1 for those that it does not name."""
        self._options = options
        self._weights = {name: weights.get(name, 1.0) for name in options.names()}
        self._level = 0
        self._groups: deque[tuple[float, float]] = deque(maxlen=options.window)

    def weights(self, step: int) -> Mapping[str, float]:
        return self._of_level(self._level)

    def possible(self) -> list[Mapping[str, float]]:
        return [self._of_level(level) for level in range(len(self._options.levels))]

    def observe(self, sources: Sequence[str | None], outcomes: Outcomes) -> None:
        own = self._options.levels[self._level]
        for source, right, count in zip(sources, outcomes.successes.tolist(), outcomes.counts.tolist(), strict=True):
            if source in own:
                self._groups.append((right, count))
        full = len(self._groups) == self._options.window
        if full and self._right() >= self._options.advance_at and self._level + 1 < len(self._options.levels):
            self._level += 1
            self._groups.clear()

    def metrics(self) -> dict[str, float]:
        """The level, counted from 1, and the share of right samples so far, where there are any."""
        return {"level": self._level + 1.0} | ({"level_right": self._right()} if self._groups else {})

    def state(self) -> dict[str, Any]:
        reached = [list(level) for level in self._options.levels[: self._level + 1]]
        return {"kind": "pass_rate", "reached": reached, "groups": [list(group) for group in self._groups]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        reached = [tuple(level) for level in state["reached"]]
        if list(self._options.levels[: len(reached)]) != reached:
            raise ValueError(
                f"prompts.curriculum.levels: the checkpoint had come to level {len(reached)} of "
                f"{' < '.join(', '.join(level) for level in reached)}; keep those levels as they were, or start a new run"
            )
        self._level = len(reached) - 1
        self._groups.clear()
        self._groups.extend((right, count) for right, count in state["groups"])

    def _right(self) -> float:
        return sum(right for right, _ in self._groups) / sum(count for _, count in self._groups)

    def _of_level(self, level: int) -> dict[str, float]:
        weights = dict.fromkeys(self._weights, 0.0)
        former = [name for names in self._options.levels[:level] for name in names]
        review = self._options.review if former else 0.0
        for names, share in ((self._options.levels[level], 1.0 - review), (former, review)):
            whole = sum(self._weights[name] for name in names)
            weights |= {name: share * self._weights[name] / whole for name in names}
        return weights

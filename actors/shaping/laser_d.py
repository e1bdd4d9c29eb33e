"""LASER-D: a bonus for right answers within a target length, which follows what right answers of prompts as hard need."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from actors.shaping.protocol import Limited, Shaped, ShapingBatch

LEVELS = ("hard", "medium", "easy")
"""By how many of a group are right: less than a third, less than two thirds, more."""


class LaserDOptions(Limited):
    """A step in the place of a slope: below the target nothing is gained by being shorter still."""

    kind: Literal["laser_d"] = "laser_d"
    bonus: float = Field(0.5, gt=0)
    """What a right answer within its target gets beside its reward."""
    every: int = Field(20, ge=1)
    """Steps after which the targets are set anew; until then they are the longest length."""

    def create(self) -> "LaserD":
        return LaserD(self)


class LaserD:
    """Remembers the target of each level of difficulty, and the lengths of right answers since they were set."""

    def __init__(self, options: LaserDOptions) -> None:
        self._options = options
        self._targets: dict[str, int] = {}
        self._lengths: dict[str, Counter[int]] = {level: Counter() for level in LEVELS}

    def __call__(self, batch: ShapingBatch) -> Shaped:
        """r' = r + bonus for right answers with L <= the target of their group's level, else r. Source: LASER-D (arXiv 2505.15612)."""
        targets = {level: self._targets.get(level, self._options.limit(batch)) for level in LEVELS}
        target = np.array([targets[LEVELS[level]] for level in levels(batch)], dtype=np.float64)[:, None]
        within = batch.correct & (batch.lengths <= target)
        metrics = {f"target_{level}": float(value) for level, value in targets.items()}
        return Shaped(batch.rewards + np.where(within, self._options.bonus, 0.0), metrics=metrics)

    def learn(self, batch: ShapingBatch) -> None:
        """Watches the batches of training; the source has a set of prompts of its own for that."""
        for row, level in enumerate(levels(batch).tolist()):
            lengths = batch.lengths[row, batch.correct[row]].astype(np.int64)
            self._lengths[LEVELS[level]].update(lengths.tolist())
        if (batch.step + 1) % self._options.every == 0:
            for level, lengths in self._lengths.items():
                if lengths:
                    self._targets[level] = target_length(lengths, right_answers(level, batch.rewards.shape[1]))
                    lengths.clear()

    def state(self) -> dict[str, Any]:
        lengths = {level: {str(length): n for length, n in counts.items()} for level, counts in self._lengths.items()}
        return {"targets": dict(self._targets), "lengths": lengths}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._targets = dict(state["targets"])
        self._lengths = {
            level: Counter({int(length): n for length, n in state["lengths"][level].items()}) for level in LEVELS
        }


def levels(batch: ShapingBatch) -> npt.NDArray[np.int64]:
    """[M] of each group, its place in LEVELS."""
    # In whole numbers: two of three are two thirds, whatever the rounding.
    right, scored = batch.correct.sum(axis=1), batch.scored.sum(axis=1)
    return (3 * right >= scored).astype(np.int64) + (3 * right >= 2 * scored)


def right_answers(level: str, group_size: int) -> int:
    """The fewest right answers that a group of a level is taken to have."""
    return max(1, group_size * LEVELS.index(level) // 3)


def target_length(lengths: Counter[int], right: int) -> int:
    """The shortest length at which a group with so many right answers still has one in expectation: coverage * right >= 1.

    lengths: how many right answers had each; coverage: share of them within the target. Source: the expected correct responses of LASER-D, at
    the lengths that were seen, where the source has a grid of them.
    """
    total, within = lengths.total(), 0
    for length in sorted(lengths):
        within += lengths[length]
        if within * right >= total:
            return length
    raise ValueError("there are no lengths to choose from")

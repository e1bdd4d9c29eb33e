"""The weights of DRPO: among right answers the shorter one is learned from more, and no right answer is ever pushed down for its length."""

from typing import Literal

import numpy as np
from pydantic import Field

from actors.shaping.protocol import Limited, Rule, Shaped, ShapingBatch


class Drpo(Limited):
    """Multiplies the advantages of right answers; rewards stay as they are."""

    kind: Literal["drpo"] = "drpo"
    temperature: float = Field(0.1, gt=0)
    """How fast a right answer's weight falls with its length: by a factor e for so large a share of the longest length."""

    def create(self) -> Rule:
        return self

    def __call__(self, batch: ShapingBatch) -> Shaped:
        """A' = A * w / (mean of w over the group's right answers), w = exp((1 - L / Lmax) / temperature); wrong answers keep theirs.

        Source: DRPO (arXiv 2510.04474): its weights, w_i / sum of w over right answers, and not its objective for wrong answers.
        """
        exponent = (1.0 - batch.lengths / self.limit(batch)) / self.temperature
        largest = np.where(batch.correct, exponent, -np.inf).max(axis=1, keepdims=True)
        weights = np.where(batch.correct, np.exp(np.where(batch.correct, exponent - largest, 0.0)), 0.0)
        mean = weights.sum(axis=1, keepdims=True) / np.maximum(batch.correct.sum(axis=1, keepdims=True), 1)
        return Shaped(batch.rewards, np.where(batch.correct, weights / np.where(mean > 0, mean, 1.0), 1.0))

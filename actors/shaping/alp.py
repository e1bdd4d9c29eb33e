"""Adaptive length penalty (ALP): every token costs, the more the easier its prompt."""

from typing import Literal

import numpy as np
from pydantic import Field

from actors.shaping.protocol import Guarded, Rule, Shaped, ShapingBatch
from actors.shaping.statistics import share_correct


class Alp(Guarded):
    """A price for each token, by how often its prompt is solved."""

    kind: Literal["alp"] = "alp"
    beta: float = Field(1e-4, gt=0)
    """Price of a token where the prompt is always solved, in units of reward. The source's 1e-7 counts on GRPO's division by the group's deviation, which is not done here."""

    def create(self) -> Rule:
        return self

    def __call__(self, batch: ShapingBatch) -> Shaped:
        """r' = r - beta * L * max(p, 1 / K); p the share of the group's K completions that are right.

        Source: ALP (arXiv 2506.05256), which charges all completions; here right ones alone unless told otherwise.
        """
        completions = np.maximum(batch.scored.sum(axis=1, keepdims=True), 1)
        price = self.beta * np.maximum(share_correct(batch.correct, batch.scored), 1.0 / completions)
        return Shaped(batch.rewards - np.where(self.whom(batch), price * batch.lengths, 0.0))

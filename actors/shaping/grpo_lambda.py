"""GRPO-lambda: only groups that are mostly right learn to be short; the others learn to be right first."""

from typing import Literal

import numpy as np
from pydantic import Field

from actors.shaping.protocol import Rule, Shaped, ShapingBatch, ShapingOptions
from actors.shaping.statistics import share_correct, sigmoid, standardised


class GrpoLambda(ShapingOptions):
    """Takes a share of the reward of long right answers, in the groups of a batch that are right most often."""

    kind: Literal["grpo_lambda"] = "grpo_lambda"
    top: float = Field(0.2, gt=0, le=1)
    """Share of a batch's groups whose lengths count, those with most right answers; 1 is the rule of Arora and Zanette."""
    alpha: float = Field(0.2, gt=0, lt=1)
    """The most that a right answer can lose for its length, as a share of its reward."""

    def create(self) -> Rule:
        return self

    def __call__(self, batch: ShapingBatch) -> Shaped:
        """r' = r (1 - alpha * sigmoid((L - mean) / deviation)) for right answers of the chosen groups, else r.

        mean, deviation: of the lengths of the group's right answers. Of groups that are right as often the earlier one of the feed is
        chosen; at least one is. Source: GRPO-lambda (arXiv 2505.18086) for which groups; the shape is that of Arora and
        Zanette (arXiv 2502.04463), with which it is reported, and not checked in the former's text.
        """
        groups = len(batch.rewards)
        order = np.argsort(-share_correct(batch.correct, batch.scored)[:, 0], kind="stable")
        chosen = np.zeros((groups, 1), dtype=np.bool_)
        chosen[order[: max(1, int(self.top * groups))]] = True
        loss = self.alpha * sigmoid(standardised(batch.lengths, batch.correct))
        return Shaped(batch.rewards * np.where(chosen & batch.correct, 1.0 - loss, 1.0))

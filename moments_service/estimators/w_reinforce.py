"""W-REINFORCE: failures at full weight, successes at little or none."""

from typing import Literal

import numpy as np
from pydantic import Field

from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages
from moments_service.messages.groups import FULL_REWARD


class WReinforce(EstimatorOptions):
    """A = `positive` for a correct completion and -1 for a wrong one. `positive: 0` is NSR: learning from failures alone.

    Rewards are made binary: correct means r >= 1. There is no baseline and nothing is compared, so every completion is
    pushed alone, whatever the rest of its group is. As A = (x - baseline) / scale of the binary reward x, baseline and
    scale are both 1 / (1 + `positive`).
    Source: NSR and W-REINFORCE (arXiv 2506.01347); METHODS G, from third-party notes that quote the paper.
    """

    kind: Literal["w_reinforce"] = "w_reinforce"
    positive: float = Field(0.1, ge=0)
    """Weight of a correct completion; a wrong one has 1."""

    def create(self) -> Estimator:
        return self

    def __call__(self, batch: RewardBatch) -> Advantages:
        correct = np.where(np.isnan(batch.rewards), np.nan, (batch.rewards >= FULL_REWARD).astype(np.float64))
        level = np.full(len(correct), 1.0 / (1.0 + self.positive))
        return advantages(correct, level, level, epsilon=0.0)

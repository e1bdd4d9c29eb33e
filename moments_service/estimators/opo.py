"""OPO: the baseline of least second moment of the gradient, if a token's gradient is like any other's."""

from typing import Literal

import numpy as np
from pydantic import Field

from moments_service.blend import group_moments
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages


class OPO(EstimatorOptions):
    """A = r - b, b = sum of L^a r / sum of L^a over the group, L the completion's length in tokens and a `length_power`.

    What is least is E ||(r - b) g||^2, g the gradient that a completion adds: at b = E[||g||^2 r] / E[||g||^2]. Scores of
    tokens are martingale differences, so where they are of one size, ||sum over tokens||^2 goes like L. Then a = 1 where the
    loss *sums* over a completion's tokens, whatever it divides the batch by: that is OPO. Where it takes the *mean* over them,
    as `seq_mean_token_mean` does, g is that sum divided by L and ||g||^2 goes like 1 / L: a = -1. There b moves the expected
    gradient too, by b E[g], since 1 / L belongs to the sample; what is least is the second moment, not the variance.

    Meant for exactly on-policy training. The group's sums hold the completion itself, so b is not independent of it.
    Completions without a reward or without tokens count in neither sum; a group whose completions are all empty takes its
    plain mean. Uniform groups and single rewards give 0.
    Source: OPO (arXiv 2505.23585); METHODS B, read in verl, where a = 1. a = -1 is derived here.
    """

    kind: Literal["opo"] = "opo"
    length_power: float = Field(1.0, ge=-1, le=1)
    """1 where the loss sums over a completion's tokens, -1 where it takes their mean; 0 is the group's mean."""

    def create(self) -> Estimator:
        return self

    def __call__(self, batch: RewardBatch) -> Advantages:
        counted = ~np.isnan(batch.rewards) & (batch.lengths > 0)
        weights = np.where(counted, np.where(counted, batch.lengths, 1.0) ** self.length_power, 0.0)
        total = weights.sum(axis=1)
        weighted = (weights * np.where(counted, batch.rewards, 0.0)).sum(axis=1) / np.where(total > 0, total, 1.0)
        mean, _, _ = group_moments(batch.rewards)
        return advantages(batch.rewards, np.where(total > 0, weighted, mean), np.ones_like(mean), epsilon=0.0)

"""KRPO: a Kalman filter over the group's rewards, one after the other."""

from typing import Literal

import numpy as np
from pydantic import Field

from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch

EPSILON = 1e-8


class KRPO(EstimatorOptions):
    """A_i = (r_i - x_i) / (sqrt(P_i) + 1e-8), x and P as they are once reward i is taken in.

    P' = P + q; K = P' / (P' + r); x = x + K (r_i - x); P = (1 - K) P'. Every group starts afresh at x = 0, P = 1, and
    missing rewards are skipped. sqrt(P) is the error of x, not the spread of rewards, and shrinks with every reward:
    advantages are large, depend on the order of the completions, and a uniform group of ones is pushed up a little.
    Each completion has a baseline and scale of its own; those reported are the filter's last, x and sqrt(P).
    Source: KRPO (arXiv 2505.07527); METHODS B, and read in the authors' code.
    """

    kind: Literal["krpo"] = "krpo"
    q: float = Field(1e-5, ge=0)
    """Process variance: how much the true mean may move from one reward to the next."""
    r: float = Field(1e-2, gt=0)
    """Measurement variance of a reward."""

    def create(self) -> Estimator:
        return self

    def __call__(self, batch: RewardBatch) -> Advantages:
        groups = len(batch.rewards)
        mean, variance = np.zeros(groups), np.ones(groups)
        values = np.full_like(batch.rewards, np.nan)
        for i, column in enumerate(batch.rewards.T):
            known = ~np.isnan(column)
            predicted = variance[known] + self.q
            gain = predicted / (predicted + self.r)
            mean[known] += gain * (column[known] - mean[known])
            variance[known] = (1.0 - gain) * predicted
            values[known, i] = (column[known] - mean[known]) / (np.sqrt(variance[known]) + EPSILON)
        return Advantages(values, mean, np.sqrt(variance), np.zeros(groups))

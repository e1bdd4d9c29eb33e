"""KRPO: a Kalman filter over the group's rewards, one after the other."""

import math
from dataclasses import dataclass

import numpy as np

from moments_service.estimators.base import Advantages, RewardBatch
from moments_service.estimators.options import require

EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class KRPO:
    """A_i = (r_i - x_i) / (sqrt(P_i) + 1e-8), x and P as they are once reward i is taken in.

    P' = P + q; K = P' / (P' + r); x = x + K (r_i - x); P = (1 - K) P'. Every group starts afresh at x = 0, P = 1, and
    missing rewards are skipped. sqrt(P) is the error of x, not the spread of rewards, and shrinks with every reward:
    advantages are large, depend on the order of the completions, and a uniform group of ones is pushed up a little.
    Each completion has a baseline and scale of its own; those reported are the filter's last, x and sqrt(P).
    Source: KRPO (arXiv 2505.07527); METHODS B, and read in the authors' code.
    """

    q: float = 1e-5
    """Process variance: how much the true mean may move from one reward to the next."""
    r: float = 1e-2
    """Measurement variance of a reward."""

    def __post_init__(self) -> None:
        require(0 <= self.q < math.inf, "q", self.q, "a finite number of at least 0")
        require(0 < self.r < math.inf, "r", self.r, "a finite number above 0")

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

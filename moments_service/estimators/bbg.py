"""BBG: groups weighed for pass@k by what their own successes leave of the chance that k tries fail."""

from typing import Literal

import numpy as np
from pydantic import Field

from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch
from moments_service.messages.groups import FULL_REWARD

SMALLEST_WEIGHT = 1e-300
"""Keeps one over the weight finite."""


class BBG(EstimatorOptions):
    """A = w(m) (x_i - mean of the others of the group) for m of n correct, w(m) = u(m) / u(1); -w(0) each where m = 0.

    x is 1 for r >= 1 and else 0. u(m) = k E[(1 - p)^(k-1)], the slope of pass@k, over the Beta posterior of p that m
    successes of n under a uniform prior give: u(m) = k prod over j = 1 .. k-1 of (n - m + j) / (n + 1 + j). A group of all
    wrong ones has nothing to compare and learns by signed REINFORCE, reward -1; one of all right ones gives 0. k = 16 gives
    8 completions w = 2.9, 1, .32, .09, ...; the smaller the group, the larger w(0): 8.5 for 2, k for 1.

    A single reward gives 0 if it is 1, or if errors left it of a larger group. Baseline and scale are those of x.
    Source: BBG (arXiv 2606.15455), second-hand (from its code): weights and the rule for m = 0. That the rest is multiplied
    with the leave-one-out advantage, whose expectation is the gradient of p, is this project's reading.
    """

    kind: Literal["bbg"] = "bbg"
    k: int = Field(16, ge=1)
    """How many tries one success is enough for."""

    def create(self) -> Estimator:
        return self

    def __call__(self, batch: RewardBatch) -> Advantages:
        valid = ~np.isnan(batch.rewards)
        correct = np.where(valid, batch.rewards, -np.inf) >= FULL_REWARD
        alone = batch.lone_survivors().tolist()
        baseline, scale = np.zeros(len(valid)), np.ones(len(valid))
        for m, (n, c) in enumerate(zip(valid.sum(axis=1).tolist(), correct.sum(axis=1).tolist(), strict=True)):
            if c == 0:
                baseline[m] = 0.0 if alone[m] else group_weight(n, 0, self.k)
            else:
                baseline[m] = c / n
                scale[m] = (n - 1) / n / group_weight(n, c, self.k) if n > 1 else 1.0
        values = np.where(valid, (correct - baseline[:, None]) / scale[:, None], np.nan)
        return Advantages(values, baseline, scale, np.zeros_like(baseline))


def group_weight(n: int, correct: int, k: int) -> float:
    """w = u(correct) / u(1) of a group of n rewards, but at least 1e-300; 0 for a group without any."""
    if n == 0:
        return 0.0
    tries = np.arange(1, k)
    return max(float(np.prod((n - correct + tries) / (n - 1 + tries))), SMALLEST_WEIGHT)

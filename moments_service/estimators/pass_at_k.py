"""Pass@k training: a completion is worth what it adds to the chance that one of k is right."""

from math import comb, sqrt
from typing import Literal

import numpy as np
from pydantic import Field

from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch
from moments_service.messages.groups import FULL_REWARD


class PassAtK(EstimatorOptions):
    """The analytic advantages of pass@k, from c correct completions among the N with a reward:

    R = 1 - C(N-c, k) / C(N, k), sigma = sqrt(R (1 - R)),
    A_correct = (1 - R) / sigma, A_wrong = (1 - R - C(N-c-1, k-1) / C(N-1, k-1)) / sigma; 0 where sigma = 0.

    Rewards are made binary: correct means r >= 1, whatever the reward is else. k = 1 is GRPO with the population std.
    A group with k rewards or fewer gives 0: pass@k of all of them is certain, and of more of them is not defined. So k
    must be below the group size, or nothing is ever learned.
    Baseline and scale are those of the binary reward x, A = (x - baseline) / scale; but where N - c < k makes pass@k
    certain of a mixed group, A is 0 although x is not constant: there they are c / N and 1 and do not explain A.
    Source: pass@k training (arXiv 2508.10751), analytic form; METHODS B, written from knowledge, not re-checked.
    """

    kind: Literal["pass_at_k"] = "pass_at_k"
    k: int = Field(4, ge=1)
    """How many tries one success is enough for."""

    def create(self) -> Estimator:
        return self

    def __call__(self, batch: RewardBatch) -> Advantages:
        valid = ~np.isnan(batch.rewards)
        correct = np.where(valid, batch.rewards, -np.inf) >= FULL_REWARD
        baseline, scale = np.zeros(len(valid)), np.ones(len(valid))
        values = np.where(valid, 0.0, np.nan)
        for m, (n, c) in enumerate(zip(valid.sum(axis=1).tolist(), correct.sum(axis=1).tolist(), strict=True)):
            pair = pass_at_k_advantages(n, c, self.k)
            if pair is None:
                baseline[m] = c / max(n, 1)
                continue
            right, wrong = pair
            scale[m] = 1.0 / (right - wrong)
            baseline[m] = -wrong * scale[m]
            values[m] = np.where(valid[m], np.where(correct[m], right, wrong), np.nan)
        return Advantages(values, baseline, scale, np.zeros_like(baseline))


def pass_at_k_advantages(n: int, correct: int, k: int) -> tuple[float, float] | None:
    """(A_correct, A_wrong) of a group of n rewards, or None where pass@k is certain or not defined."""
    if correct == 0 or n - correct < k:
        return None
    failure = comb(n - correct, k) / comb(n, k)
    sigma = sqrt(failure * (1.0 - failure))
    failure_without = comb(n - correct - 1, k - 1) / comb(n - 1, k - 1)
    return failure / sigma, (failure - failure_without) / sigma

"""QAE: a quantile of the group instead of its mean as the baseline."""

from typing import Literal

import numpy as np
from pydantic import Field

from moments_service.blend import Array
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages
from moments_service.estimators.grpo import EPSILON, sample_deviation

ROUNDING = 1e-9
"""Keeps 0.4 of 5 rewards from being a little more than 2 of them."""


class QAE(EstimatorOptions):
    """A = (r - q) / (std + 1e-6), q the `quantile` of the group's rewards and std as GRPO's (n - 1).

    q is the smallest reward that at least this share of the group does not exceed, so it is a reward of the group. Of
    binary rewards it is 0 as long as no more than 1 - `quantile` of them are 1, and only the successes are pushed; above
    that it is 1, and only the failures are. Uniform groups and single rewards give 0.
    Source: QAE (arXiv 2509.22611), second-hand: rule and threshold are as its abstract has them, the division by the std and
    the default quantile are from knowledge and not re-checked.
    """

    kind: Literal["qae"] = "qae"
    quantile: float = Field(0.4, gt=0, le=1)
    """Share of the group's rewards at or below the baseline."""

    def create(self) -> Estimator:
        return self

    def __call__(self, batch: RewardBatch) -> Advantages:
        return advantages(
            batch.rewards, group_quantile(batch.rewards, self.quantile), sample_deviation(batch.rewards), EPSILON
        )


def group_quantile(rewards: Array, quantile: float) -> Array:
    """[M] the smallest reward that at least this share of each group does not exceed; 0 where there is none.

    rewards: [M, G], NaN where there is none.
    """
    count = (~np.isnan(rewards)).sum(axis=1)
    ordered = np.sort(rewards, axis=1)  # NaN last
    place = np.maximum(np.ceil(quantile * count - ROUNDING).astype(np.int64) - 1, 0)
    return np.where(count > 0, ordered[np.arange(len(rewards)), place], 0.0)

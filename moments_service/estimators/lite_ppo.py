"""LitePPO: the group's mean, the batch's standard deviation."""

from typing import Literal

import numpy as np

from moments_service.blend import group_moments
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages
from moments_service.estimators.grpo import sample_deviation

EPSILON = 1e-4


class LitePPO(EstimatorOptions):
    """See `lite_ppo`; there is nothing to set."""

    kind: Literal["lite_ppo"] = "lite_ppo"

    def create(self) -> Estimator:
        return lite_ppo


def lite_ppo(batch: RewardBatch) -> Advantages:
    """A = (r - mean of the group) / (std of all rewards of the batch + 1e-4).

    The std divides by n - 1, as TRL's batch scaling does. Groups keep the weight that their own spread gives them: a
    nearly uniform group is not blown up. Uniform groups and single rewards give 0.
    Source: LitePPO (arXiv 2508.08221); METHODS B, read in TRL.
    """
    mean, _, _ = group_moments(batch.rewards)
    spread = float(sample_deviation(batch.rewards.reshape(1, -1))[0])
    return advantages(batch.rewards, mean, np.full_like(mean, spread), EPSILON)

"""Dr. GRPO: GRPO without its division by the standard deviation."""

from typing import Literal

import numpy as np

from moments_service.blend import group_moments
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages


class DrGRPO(EstimatorOptions):
    """See `dr_grpo`; there is nothing to set."""

    kind: Literal["dr_grpo"] = "dr_grpo"

    def create(self) -> Estimator:
        return dr_grpo


def dr_grpo(batch: RewardBatch) -> Advantages:
    """A = r - mean of the group.

    Uniform groups and groups with a single reward give 0 (verl lets a single reward stand as its own advantage). The
    other half of Dr. GRPO, a loss that does not divide by a completion's length, is the learner's aggregation.
    Source: Dr. GRPO (arXiv 2503.20783); METHODS B, read in verl and TRL.
    """
    mean, _, _ = group_moments(batch.rewards)
    return advantages(batch.rewards, mean, np.ones_like(mean), epsilon=0.0)

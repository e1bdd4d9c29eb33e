"""GRPO: the group's own mean and standard deviation."""

from typing import Literal

import numpy as np

from moments_service.blend import Array, group_moments
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages

EPSILON = 1e-6


class GRPO(EstimatorOptions):
    """See `grpo`; there is nothing to set."""

    kind: Literal["grpo"] = "grpo"

    def create(self) -> Estimator:
        return grpo


def grpo(batch: RewardBatch) -> Advantages:
    """A = (r - mean) / (std + 1e-6), std with n - 1 as in verl and TRL.

    A group of one completion has mean 0 and std 1, as in verl. A uniform group gives 0, and so does one of which errors
    left a single reward: there is nothing to compare it with.
    Source: GRPO (arXiv 2402.03300).
    """
    mean, _, count = group_moments(batch.rewards)
    single = count < 2
    baseline = np.where(single & ~batch.lone_survivors(), 0.0, mean)
    scale = np.where(single, 1.0, sample_deviation(batch.rewards))
    return advantages(batch.rewards, baseline, scale, EPSILON)


def sample_deviation(rewards: Array) -> Array:
    """Standard deviation of each group's rewards, dividing by n - 1; 0 for fewer than two. rewards: [M, G]. Returns [M]."""
    _, variance, count = group_moments(rewards)
    return np.sqrt(variance * count / np.maximum(count - 1.0, 1.0))

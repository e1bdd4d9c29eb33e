"""GRPO: the group's own mean and standard deviation."""

import numpy as np

from moments_service.blend import Array, group_moments
from moments_service.estimators.base import Advantages
from moments_service.moments import History

EPSILON = 1e-6


def grpo(rewards: Array, history: History) -> Advantages:
    """A = (r - mean) / (std + 1e-6), std with n - 1 as in verl and TRL.

    A group with a single reward has mean 0 and std 1, as in verl; a uniform group gives 0.
    rewards: [M, G], NaN where there is none. Source: GRPO (arXiv 2402.03300).
    """
    mean, variance, count = group_moments(rewards)
    single = count < 2
    sample_variance = variance * count / np.where(single, 1.0, count - 1.0)
    baseline = np.where(single, 0.0, mean)
    scale = np.where(single, 1.0, np.sqrt(sample_variance))
    values = (rewards - baseline[:, None]) / (scale[:, None] + EPSILON)
    return Advantages(values=values, baseline=baseline, scale=scale, weight=np.zeros_like(mean))

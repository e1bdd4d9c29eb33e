"""The arithmetic of BV-Blend: trust in history, the blended baseline and scale. Pure functions on arrays."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
EPSILON = 1e-8
"""Keeps the standard error of a cluster without any mass finite."""


def group_moments(rewards: Array) -> tuple[Array, Array, Array]:
    """Mean, population variance and count of each group's rewards.

    rewards: [M, G], NaN where a completion has no reward.
    Returns three [M] arrays; mean and variance are 0 where a group has no reward at all.
    The variance divides by n, so that local and historical moments are of one kind.
    """
    valid = ~np.isnan(rewards)
    count = valid.sum(axis=1).astype(np.float64)
    safe_count = np.maximum(count, 1.0)
    mean = np.where(valid, rewards, 0.0).sum(axis=1) / safe_count
    deviation = np.where(valid, rewards - mean[:, None], 0.0)
    return mean, (deviation**2).sum(axis=1) / safe_count, count


def standard_error(variance: Array, mass: Array) -> Array:
    """SEM = sqrt(variance / (mass + EPSILON)), in reward units.

    variance: [M] reward variance of each group's cluster, >= 0.    mass: [M] effective count, >= 0.
    Source: BV-Blend (arXiv 2606.28707), Eq. 8.
    """
    return np.sqrt(variance) / np.sqrt(mass + EPSILON)


def exponential_confidence(error: Array, temperature: float) -> Array:
    """Trust in history, w = exp(-SEM / temperature), in (0, 1]. error: [M]. Source: BV-Blend, Eq. 9."""
    return np.exp(-error / temperature)


def rational_confidence(error: Array, temperature: float) -> Array:
    """w = 1 / (1 + SEM / temperature): a heavier tail. error: [M]. Source: BV-Blend, ablation."""
    return 1.0 / (1.0 + error / temperature)


def linear_confidence(error: Array, temperature: float) -> Array:
    """w = max(0, 1 - SEM / temperature): no trust at all past the temperature. error: [M]. Source: BV-Blend, ablation."""
    return np.maximum(0.0, 1.0 - error / temperature)


def inverse_variance_confidence(group_variance: Array, history_variance: Array) -> Array:
    """w = V_group / (V_group + V_history): the combination of two estimates of one mean that varies least.

    Both [M], the variance of each estimate; w is 0 where both are 0.
    """
    both = group_variance + history_variance
    return np.where(both > 0, group_variance / np.where(both > 0, both, 1.0), 0.0)


def blended_baseline(weight: Array, history_mean: Array, group_mean: Array) -> Array:
    """b = w * history + (1 - w) * group. All [M]. Source: BV-Blend, Eq. 10."""
    return weight * history_mean + (1.0 - weight) * group_mean


def blended_variance(weight: Array, history_variance: Array, group_variance: Array) -> Array:
    """s^2 = w * v_history + (1 - w) * v_group. All [M]. Source: BV-Blend, Eq. 10 (no between-means term)."""
    return weight * history_variance + (1.0 - weight) * group_variance


def between_means_variance(weight: Array, history_mean: Array, group_mean: Array) -> Array:
    """The term that makes the blend a true mixture (law of total variance): w (1 - w) (mu_h - mu_G)^2.

    It bounds the advantages of a group far from its history by sqrt(w / (1 - w)) in magnitude. All [M].
    """
    return weight * (1.0 - weight) * (history_mean - group_mean) ** 2

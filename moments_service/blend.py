"""The arithmetic of BV-Blend: trust in history, the blended baseline and scale. Pure functions on arrays."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


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


def sem_confidence(variance: Array, mass: Array, temperature: float, epsilon: float = 1e-8) -> Array:
    """Trust in history, w = exp(-SEM / temperature) with SEM = sqrt(variance / (mass + epsilon)).

    variance: [M] reward variance of each group's cluster, >= 0.    mass: [M] effective count, >= 0.
    Returns [M] in (0, 1]. Source: BV-Blend (arXiv 2606.28707), Eq. 8-9.
    """
    standard_error = np.sqrt(variance) / np.sqrt(mass + epsilon)
    return np.exp(-standard_error / temperature)


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

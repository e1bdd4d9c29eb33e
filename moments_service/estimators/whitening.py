"""Centring and scaling over a whole batch instead of a group."""

import numpy as np

from moments_service.blend import Array
from moments_service.estimators.base import Advantages, advantages

EPSILON = 1e-6
"""Added to the batch's standard deviation; that of GRPO, since the papers that whiten give none of their own."""


def batch_moments(values: Array, weights: Array) -> tuple[float, float]:
    """Weighted mean and population variance over everything in a batch.

    values: [M, G], NaN where there is none.    weights: [M, G], >= 0; they all count alike where they sum to 0.
    Both are 0 for a batch without values.
    """
    valid = ~np.isnan(values)
    weights = np.where(valid, weights, 0.0)
    if weights.sum() == 0:
        weights = valid.astype(np.float64)
    total = float(weights.sum()) or 1.0
    clean = np.where(valid, values, 0.0)
    mean = float((weights * clean).sum()) / total
    return mean, float((weights * (clean - mean) ** 2).sum()) / total


def whitened(rewards: Array, baseline: Array, weights: Array, trust: Array | None = None) -> Advantages:
    """x = r - baseline, then A = (x - mean of x) / (std of x + 1e-6), both over the batch and weighted.

    rewards, weights: [M, G].    baseline, trust: [M]. The batch's mean of x becomes part of the baseline.
    Divides by n, as OpenRLHF does (verl by n - 1, which over all tokens of a batch is the same to three digits).
    A batch of a single reward, or of equal x, gives 0.
    """
    mean, variance = batch_moments(rewards - baseline[:, None], weights)
    return advantages(rewards, baseline + mean, np.full_like(baseline, np.sqrt(variance)), EPSILON, trust)

"""What rules ask of a group's numbers. All arrays are [M, G]; only the completions that count are looked at."""

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array

Mask = npt.NDArray[np.bool_]


def standardised(values: Array, of: Mask) -> Array:
    """(value - mean) / deviation over the completions of each group that count, with n - 1 below the root; 0 elsewhere.

    A deviation that cannot be told, or is 0, is taken for 1: then all that count are at their mean, and 0 too.
    """
    count = of.sum(axis=1, keepdims=True)
    mean = np.where(of, values, 0.0).sum(axis=1, keepdims=True) / np.maximum(count, 1)
    apart = np.where(of, values - mean, 0.0)
    deviation = np.sqrt((apart**2).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1))
    return apart / np.where(deviation > 0, deviation, 1.0)


def sigmoid(values: Array) -> Array:
    """1 / (1 + exp(-value))."""
    return 0.5 * (1.0 + np.tanh(0.5 * values))


def share_correct(correct: Mask, scored: Mask) -> Array:
    """[M, 1]: right answers of each group, as a share of those with a reward; 0 where there is none."""
    return correct.sum(axis=1, keepdims=True) / np.maximum(scored.sum(axis=1, keepdims=True), 1)

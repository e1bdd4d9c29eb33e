"""What each group of a batch says by itself: its mean, of how many rewards, and how they scatter."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array


@dataclass(frozen=True, slots=True)
class GroupMeans:
    """M groups. All arrays [M], 0 where a group has no reward.

    mean: of its rewards.    size: their number.    squares: their squared deviations from the mean.    freedom: size - 1.
    scored: whether it has a reward.
    """

    mean: Array
    size: Array
    squares: Array
    freedom: Array
    scored: npt.NDArray[np.bool_]


def group_means(rewards: Array) -> GroupMeans:
    """rewards: [M, G], NaN where there is none."""
    valid = ~np.isnan(rewards)
    size = valid.sum(axis=1).astype(np.float64)
    safe = np.maximum(size, 1.0)
    clean = np.where(valid, rewards, 0.0)
    # Deviations from a reward of the group itself: nothing is lost where all rewards are far from 0.
    origin = np.take_along_axis(clean, valid.argmax(axis=1)[:, None], axis=1)
    centred = np.where(valid, clean - origin, 0.0)
    shift = centred.sum(axis=1) / safe
    squares = np.where(valid, (centred - shift[:, None]) ** 2, 0.0).sum(axis=1)
    return GroupMeans(origin[:, 0] + shift, size, squares, np.maximum(size - 1.0, 0.0), size > 0)

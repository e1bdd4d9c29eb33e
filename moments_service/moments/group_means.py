"""What each group of a batch says by itself: its mean, how many rewards that is worth, and how they scatter."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array

LEAST_WEIGHT = 0.05


@dataclass(frozen=True, slots=True)
class GroupMeans:
    """M groups. All arrays [M], 0 where a group has no reward.

    mean: weighted mean of its rewards.    size: how many equal weights would average as well, (sum w)^2 / sum w^2.
    squares: squared deviations from the mean, so weighted that squares / freedom is unbiased for the variance of a reward.
    freedom: size - 1.    scored: whether it has a reward.
    """

    mean: Array
    size: Array
    squares: Array
    freedom: Array
    scored: npt.NDArray[np.bool_]


def reward_weights(rewards: Array, score_norms: Array | None = None, lengths: Array | None = None) -> Array:
    """[M, G] >= 0 weight of each reward in any mean: how much its completion moves the policy, 0 where there is no reward.

    That is the squared norm of its score, and the baseline of least variance weighs rewards so. The score of a completion is
    the mean over its tokens; theirs are not correlated, so its squared norm is the mean of theirs over their number. All count
    alike where nobody knows the norms, and in a group where all are 0; none counts less than LEAST_WEIGHT of its group's average.
    Source: Weaver and Tao (2001); Greensmith, Bartlett and Baxter (2004).
    """
    valid = ~np.isnan(rewards)
    if score_norms is None or lengths is None:
        return valid.astype(np.float64)
    norms = np.where(valid, np.nan_to_num(score_norms) / np.maximum(np.nan_to_num(lengths), 1.0), 0.0)
    average = norms.sum(axis=1, keepdims=True) / np.maximum(valid.sum(axis=1, keepdims=True), 1)
    return np.where(valid, np.where(average > 0, np.maximum(norms, LEAST_WEIGHT * average), 1.0), 0.0)


def group_means(rewards: Array, weights: Array) -> GroupMeans:
    """rewards: [M, G], NaN where there is none.    weights: [M, G] >= 0, 0 where there is none."""
    clean = np.where(weights > 0, rewards, 0.0)
    total = weights.sum(axis=1)
    scored = total > 0
    safe = np.where(scored, total, 1.0)
    # Deviations from a reward of the group itself: nothing is lost where all rewards are far from 0.
    origin = clean[np.arange(len(clean)), weights.argmax(axis=1)] if clean.shape[1] else total
    centred = np.where(weights > 0, clean - origin[:, None], 0.0)
    shift = (weights * centred).sum(axis=1) / safe
    size = total**2 / np.where(scored, (weights**2).sum(axis=1), 1.0)
    squares = (weights * (centred - shift[:, None]) ** 2).sum(axis=1) / safe * size
    return GroupMeans(np.where(scored, origin + shift, 0.0), size, squares, np.maximum(size - 1.0, 0.0), scored)

"""James-Stein shrinkage: each group's leave-one-out mean, shrunk towards the mean of the other groups."""

from typing import Literal

import numpy as np

from moments_service.blend import Array, group_moments
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages


class JamesStein(EstimatorOptions):
    """See `james_stein`; there is nothing to set."""

    kind: Literal["james_stein"] = "james_stein"

    def create(self) -> Estimator:
        return james_stein


def james_stein(batch: RewardBatch) -> Advantages:
    """A_ij = r_ij - b_ij, b_ij = (1 - l_i) mean of group i without j + l_i mean of the other groups' means.

    l_i = (n - 1) / n * v / (v + s) over the n - 1 other groups: v the mean variance of their means, s the variance of
    their means. Neither holds anything of group i, nor b_ij of completion j: the estimator stays unbiased.
    b_ij is linear in r_ij, so A = (r - baseline) / scale with scale = (m - 1) / (m - l), m the rewards of the group, and
    baseline = ((1 - l) m mean + l (m - 1) others) / (m - l). It is not divided by any std: a uniform group has none, yet
    is pushed away from the others.

    Groups without a reward are no others. Those with one reward have a mean but no variance, and count in s alone. A
    group with one reward has l = 1: its only baseline is the others' mean. The only group of a batch has l = 0 (RLOO).
    Source: James-Stein shrinkage (arXiv 2511.03710); METHODS B, a replica checked against the paper.
    """
    mean, variance, count = group_moments(batch.rewards)
    others, shrinkage = leave_one_out_shrinkage(mean, variance, count)
    alone = count < 2
    size = np.where(alone, 2.0, count)
    scale = (size - 1.0) / (size - shrinkage)
    shrunk = ((1.0 - shrinkage) * size * mean + shrinkage * (size - 1.0) * others) / (size - shrinkage)
    only_others = shrinkage * others + (1.0 - shrinkage) * mean
    return advantages(batch.rewards, np.where(alone, only_others, shrunk), np.where(alone, 1.0, scale), epsilon=0.0)


def leave_one_out_shrinkage(mean: Array, variance: Array, count: Array) -> tuple[Array, Array]:
    """The mean of the other groups' means and the trust in it, both [M]. variance divides by n; all arguments [M]."""
    has_reward, has_variance = count > 0, count > 1
    groups = int(has_reward.sum())
    variance_of_mean = variance / np.maximum(count - 1.0, 1.0)
    others, shrinkage = np.zeros_like(mean), np.zeros_like(mean)
    for i in range(len(mean)):
        other = np.arange(len(mean)) != i
        if not (has_reward & other).any():
            continue
        means = mean[has_reward & other]
        others[i] = means.mean()
        if not has_variance[i]:
            shrinkage[i] = 1.0
        elif (has_variance & other).any():
            sampling = variance_of_mean[has_variance & other].mean()
            if sampling > 0:
                spread = means.var()
                shrinkage[i] = (groups - 1) / groups * sampling / (sampling + spread)
    return others, shrinkage

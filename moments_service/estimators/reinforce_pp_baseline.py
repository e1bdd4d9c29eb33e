"""REINFORCE++-baseline: the group's mean subtracted, the rest whitened over all tokens of the batch."""

from typing import Literal

from moments_service.blend import group_moments
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch
from moments_service.estimators.whitening import whitened


class ReinforcePPBaseline(EstimatorOptions):
    """See `reinforce_pp_baseline`; there is nothing to set."""

    kind: Literal["reinforce_pp_baseline"] = "reinforce_pp_baseline"

    def create(self) -> Estimator:
        return reinforce_pp_baseline


def reinforce_pp_baseline(batch: RewardBatch) -> Advantages:
    """x = r - mean of the group; A = (x - mean of x) / (std of x + 1e-6), both over all tokens of the batch.

    The mean of x is 0 where lengths are equal; else it moves with how length and reward go together, so that even a
    uniform group is pushed a little. A group with a single reward has x = 0 (verl lets the reward stand).
    Source: REINFORCE++ (arXiv 2501.03262), the variant for groups, also DLER's script; METHODS B, read in verl.
    """
    mean, _, _ = group_moments(batch.rewards)
    return whitened(batch.rewards, mean, batch.lengths)

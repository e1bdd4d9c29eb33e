"""RLOO: every completion against the mean of the others of its group."""

from typing import Literal

import numpy as np

from moments_service.blend import group_moments
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages


class RLOO(EstimatorOptions):
    """See `rloo`; there is nothing to set."""

    kind: Literal["rloo"] = "rloo"

    def create(self) -> Estimator:
        return rloo


def rloo(batch: RewardBatch) -> Advantages:
    """A_i = r_i - mean of r_j over j != i = (r_i - mean) / ((n - 1) / n).

    n counts the rewards of the group. Unbiased, since no completion is in its own baseline. A group with a single
    reward has nobody to be compared with and gives 0; a uniform group gives 0.
    Source: RLOO (arXiv 2402.14740); METHODS B, read in verl and TRL.
    """
    mean, _, count = group_moments(batch.rewards)
    share_of_others = (count - 1.0) / np.maximum(count, 1.0)
    return advantages(batch.rewards, mean, np.where(count > 1, share_of_others, 1.0), epsilon=0.0)

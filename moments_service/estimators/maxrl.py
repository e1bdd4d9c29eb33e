"""MaxRL: the gradient of the log-likelihood of success instead of its probability."""

from typing import Literal

import numpy as np

from moments_service.blend import group_moments
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages


class MaxRL(EstimatorOptions):
    """See `maxrl`; there is nothing to set."""

    kind: Literal["maxrl"] = "maxrl"

    def create(self) -> Estimator:
        return maxrl


def maxrl(batch: RewardBatch) -> Advantages:
    """A = (x - p) / p, p the mean of x in the group; 0 where p = 0. x is the reward, clipped to [0, 1].

    Made for binary rewards: a hard prompt's success weighs up to G - 1, an easy prompt's nearly nothing. Rewards between
    0 and 1 count as partial success; outside of [0, 1] they are clipped, so baseline and scale are those of x. Uniform
    groups and single rewards give 0.
    Source: MaxRL (arXiv 2602.02710); METHODS B, from notes that quote the paper.
    """
    scores = np.clip(batch.rewards, 0.0, 1.0)
    mean, _, _ = group_moments(scores)
    return advantages(scores, mean, np.where(mean > 0, mean, 1.0), epsilon=0.0)

"""OPO: the baseline of least gradient variance, if a token's gradient is like any other's."""

from typing import Literal

import numpy as np

from moments_service.blend import group_moments
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages


class OPO(EstimatorOptions):
    """See `opo`; there is nothing to set."""

    kind: Literal["opo"] = "opo"

    def create(self) -> Estimator:
        return opo


def opo(batch: RewardBatch) -> Advantages:
    """A = r - b, b = sum of L r / sum of L over the group, L the completion's length in tokens.

    Meant for exactly on-policy training. Completions without a reward count in neither sum; a group whose completions
    are all empty takes its plain mean. Uniform groups and single rewards give 0.
    Source: OPO (arXiv 2505.23585); METHODS B, read in verl.
    """
    valid = ~np.isnan(batch.rewards)
    lengths = np.where(valid, batch.lengths, 0.0)
    tokens = lengths.sum(axis=1)
    weighted = (lengths * np.where(valid, batch.rewards, 0.0)).sum(axis=1) / np.where(tokens > 0, tokens, 1.0)
    mean, _, _ = group_moments(batch.rewards)
    return advantages(batch.rewards, np.where(tokens > 0, weighted, mean), np.ones_like(mean), epsilon=0.0)

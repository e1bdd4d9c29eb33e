"""REINFORCE++: no group baseline at all, the reward whitened over all tokens of the batch."""

from typing import Literal

import numpy as np

from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch
from moments_service.estimators.whitening import whitened


class ReinforcePP(EstimatorOptions):
    """See `reinforce_pp`; there is nothing to set."""

    kind: Literal["reinforce_pp"] = "reinforce_pp"

    def create(self) -> Estimator:
        return reinforce_pp


def reinforce_pp(batch: RewardBatch) -> Advantages:
    """A = (r - mean) / (std + 1e-6), mean and std over all tokens of the batch: a completion counts by its length.

    This is REINFORCE++ for outcome rewards with a discount of 1: the return of every token of a completion is r. The KL
    penalty that the paper puts into the reward is left out, since history and estimators see raw rewards only.
    Where all completions are of one length, mean and std are exactly those of the batch's rewards (dividing by n). A
    batch without a single token counts completions alike; a batch of equal rewards gives 0.
    Source: REINFORCE++ (arXiv 2501.03262); METHODS B, read in verl and TRL.
    """
    return whitened(batch.rewards, np.zeros(len(batch.rewards)), batch.lengths)

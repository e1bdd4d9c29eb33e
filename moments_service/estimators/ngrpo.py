"""NGRPO: GRPO over the group and one imagined completion with the best reward there is."""

from typing import Literal

import numpy as np
from pydantic import Field

from moments_service.blend import group_moments
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages
from moments_service.estimators.grpo import EPSILON, sample_deviation
from moments_service.messages.groups import FULL_REWARD


class NGRPO(EstimatorOptions):
    """A = (r - mean') / (std' + 1e-6), mean' and std' over the group's rewards and one virtual reward `r_max`.

    An all-wrong group is pushed down instead of ignored; an all-right group gives 0, however few rewards it has. The std
    divides by n - 1, as GRPO's does here. A reward above `r_max` is simply above the mean: `r_max` stays what it is.
    The paper's asymmetric clip (0.16 below, 0.24 above) belongs to the learner's loss.
    Source: NGRPO (arXiv 2509.18851); METHODS B, from the authors' code, which of the two stds is not noted there.
    """

    kind: Literal["ngrpo"] = "ngrpo"
    r_max: float = Field(FULL_REWARD)
    """The virtual reward."""

    def create(self) -> Estimator:
        return self

    def __call__(self, batch: RewardBatch) -> Advantages:
        virtual = np.full((len(batch.rewards), 1), self.r_max)
        extended = np.concatenate([batch.rewards, virtual], axis=1)
        mean, _, _ = group_moments(extended)
        return advantages(batch.rewards, mean, sample_deviation(extended), EPSILON)

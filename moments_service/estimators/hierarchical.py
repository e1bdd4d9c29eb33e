"""Hierarchical empirical Bayes: the mean of a group's other completions, moved towards what history expects of their prompt."""

from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array, inverse_variance_confidence
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch
from moments_service.estimators.prompt_deviations import PromptDeviations
from moments_service.moments import CommittedRewards
from moments_service.moments.group_means import group_means
from moments_service.moments.leave_one_out import Priors, TrackedHistory, leave_one_out

LEAST_SCALE = 0.1
"""Of the range of all rewards: no advantage is divided by less, so none is larger than 10."""
PRIOR_REWARDS = 8.0
"""Rewards' worth of the guess that they vary as much as their range allows, until history knows better."""


class HierarchicalOptions(EstimatorOptions):
    """The default: history moves the baseline as far as it has earned, and never sets the scale of a single group."""

    kind: Literal["hierarchical"] = "hierarchical"
    scale: Literal["cluster", "none"] = "cluster"
    """`cluster` divides by the deviation that the cluster's advantages are expected to have, so that rare successes weigh more; `none` keeps reward units, the gradient of the mean reward."""
    own_past: bool = True
    """Whether a prompt that comes again is expected to differ from its cluster as it did before."""

    def create(self) -> Estimator:
        return Hierarchical(self)


class Hierarchical:
    """A_i = (r_i - b_i) / s, b_i = w m + (1 - w) * mean of the other rewards of the group, w = V_l / (V_l + V_h).

    m is the prior of the prompt: its cluster's mean from history and the other groups of the batch, plus what the prompt itself
    deviated by when it came before, no further than any reward of history. V_h is the mean squared error of m, as scored on
    earlier batches; V_l = v / (n - 1) that of the mean of n - 1 others, v the variance of rewards of one prompt. Where there
    are no others w = 1, so groups of one work.

    Neither b_i nor s holds anything of r_i, so no gradient is biased, whatever history says; and since w minimises the error of
    b_i by errors that were measured, it is RLOO where prompts are unlike and a historical baseline where they are alike.
    s is 1, or sqrt(v + w V_h), the deviation that r - b is expected to have; v is the cluster's, so no group sets its own scale.
    All of it is the same for rewards a r + c with a > 0, but for the scale of advantages where s is 1.
    Source: METHODS G.1, ours; after James and Stein (1961), Robbins (1956), and RLOO (arXiv 2402.14740).
    """

    def __init__(self, options: HierarchicalOptions) -> None:
        self._options = options
        self._deviations = PromptDeviations()

    def __call__(self, batch: RewardBatch) -> Advantages:
        if not isinstance(batch.history, TrackedHistory) or batch.clusters is None:
            raise ValueError("the hierarchical estimator needs the clusters of a batch, and their tracked moments")
        valid = ~np.isnan(batch.rewards)
        others = _Others(batch.rewards)
        prior = self._prior(batch.prompts, batch.rewards, batch.clusters, batch.history)
        trust = self._trust(others, prior, valid)
        residual = batch.rewards - others.mean - trust * (prior.mean[:, None] - others.mean)
        # Where neither history nor anybody else says what to expect, nothing is to be learned.
        residual = np.where((others.number == 0) & ~prior.known[:, None] & valid, 0.0, residual)
        deviation = self._deviation(batch, batch.history, prior, _average(trust, valid))
        # r - b is proportional to r - baseline, as in RLOO.
        slope = 1.0 + _average((1.0 - trust) / np.maximum(others.number, 1) * (others.number > 0), valid)
        baseline = _average(batch.rewards - residual / slope[:, None], valid)
        return Advantages(
            values=residual / deviation[:, None],
            baseline=np.where(valid.any(axis=1), baseline, prior.mean),
            scale=deviation / slope,
            weight=_average(trust, valid),
            cluster_scale=deviation,
            prior=prior,
        )

    def fold(self, committed: CommittedRewards) -> None:
        assert isinstance(committed.history, TrackedHistory)
        groups = group_means(committed.rewards)
        expected = leave_one_out(committed.history, committed.clusters, groups)
        self._deviations.fold(committed.prompts, groups, expected)

    def state(self) -> dict[str, np.ndarray]:
        return self._deviations.state()

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        self._deviations.load_state(state)

    def _prior(
        self, prompts: tuple[str, ...], rewards: Array, clusters: npt.NDArray[np.int64], history: TrackedHistory
    ) -> Priors:
        groups = group_means(rewards)
        prior = leave_one_out(history, clusters, groups)
        if self._options.own_past:
            prior = self._deviations.applied(prompts, groups, prior)
        # A deviation from a mean that has moved since may point past every reward there is, and would push the best of them down.
        within = (history.lowest, history.highest) if history.lowest < history.highest else (-np.inf, np.inf)
        return replace(prior, mean=np.clip(prior.mean, *within))

    @staticmethod
    def _trust(others: "_Others", prior: Priors, valid: npt.NDArray[np.bool_]) -> Array:
        """[M, G] w, in [0, 1]; of a group without any reward as against one other reward."""
        local, error = prior.within[:, None] / np.maximum(others.number, 1), prior.variance[:, None]
        trust = np.where(local + error > 0, inverse_variance_confidence(local, error), 0.5)
        return np.where(prior.known[:, None], np.where((others.number == 0) & valid, 1.0, trust), 0.0)

    def _deviation(self, batch: RewardBatch, history: TrackedHistory, prior: Priors, trust: Array) -> Array:
        """[M] what each group's advantages are divided by, in reward units, above 0."""
        seen = batch.rewards[~np.isnan(batch.rewards)]
        reach = max(history.highest, seen.max(initial=-np.inf)) - min(history.lowest, seen.min(initial=np.inf))
        if self._options.scale == "none" or not 0 < reach < np.inf:
            return np.ones(len(batch.rewards))
        evidence = history.pooled["freedom"] + history.pooled["groups"]
        expected = prior.within + trust * prior.variance
        known = (evidence * expected + PRIOR_REWARDS * 0.25 * reach**2) / (evidence + PRIOR_REWARDS)
        return np.maximum(np.sqrt(known), LEAST_SCALE * reach)


class _Others:
    """Number and mean of the other rewards of each completion's group. Both [M, G], 0 where there are none."""

    def __init__(self, rewards: Array) -> None:
        valid = ~np.isnan(rewards)
        self.number = valid.sum(axis=1, keepdims=True) - valid
        clean = np.where(valid, rewards, 0.0)
        # Deviations from one reward of the group: nothing is lost where all rewards are far from 0.
        origin = np.take_along_axis(clean, valid.argmax(axis=1)[:, None], axis=1)
        centred = np.where(valid, clean - origin, 0.0)
        mean = origin + (centred.sum(axis=1, keepdims=True) - centred) / np.maximum(self.number, 1)
        self.mean = np.where(self.number > 0, mean, 0.0)


def _average(values: Array, valid: npt.NDArray[np.bool_]) -> Array:
    """[M] mean of each group's values where it has rewards; of all its values where it has none. values: [M, G]."""
    counted = np.where(valid.any(axis=1, keepdims=True), valid, True)
    return np.where(counted, values, 0.0).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)

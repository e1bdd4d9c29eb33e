"""Hierarchical empirical Bayes: the mean of a group's other completions, moved towards what history expects of their prompt."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array, inverse_variance_confidence
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch
from moments_service.estimators.prompt_deviations import PromptDeviations
from moments_service.moments import CommittedRewards
from moments_service.moments.group_means import group_means, reward_weights
from moments_service.moments.leave_one_out import Priors, TrackedHistory, leave_one_out

LEAST_SCALE = 0.1
"""Of the range of all rewards: no cluster's advantages are divided by less, so none is larger than 10."""
PRIOR_REWARDS = 8.0
"""Rewards' worth of the guess that they vary as much as their range allows, until history knows better."""


class HierarchicalOptions(EstimatorOptions):
    """The default: history moves the baseline as far as it has earned, and never sets the scale of a single group."""

    kind: Literal["hierarchical"] = "hierarchical"
    scale: Literal["cluster", "prompt", "none"] = "cluster"
    """`cluster` divides by the deviation that the cluster's advantages are expected to have, which gives rare successes more weight; `none` keeps reward units, the unbiased gradient of the mean reward."""
    own_past: bool = True
    """Whether a prompt that comes again is expected to differ from its cluster as it did before."""
    score_weights: bool = False
    """Whether rewards enter a baseline by how much their completion moves the policy: less variance where completions differ in how sure the policy was of them."""

    def create(self) -> Estimator:
        return Hierarchical(self)


class Hierarchical:
    """A_i = (r_i - b_i) / s, b_i = w m + (1 - w) * mean of the other rewards of the group, w = V_l / (V_l + V_h).

    m is the prior of the prompt: its cluster's mean from history and the other groups of the batch, plus what the prompt itself
    deviated by when it came before. V_h is the mean squared error of m, as scored on earlier batches; V_l = v / (n - 1) that of
    the mean of n - 1 others, v the variance of rewards of one prompt. Where there are no others w = 1, so groups of one work.

    Neither b_i nor s holds anything of r_i, so no gradient is biased, whatever history says; and since w minimises the error of
    b_i by errors that were measured, it is RLOO where prompts are unlike and a historical baseline where they are alike.
    s is 1, or one for the whole cluster: sqrt(v + mean of w V_h), the deviation that r - b is expected to have. All of it is
    the same, but for the scale of advantages under `scale: none`, for rewards a r + c with a > 0.
    Source: METHODS G.1, ours; after James and Stein (1961), Robbins (1956), and RLOO (arXiv 2402.14740).
    """

    def __init__(self, options: HierarchicalOptions) -> None:
        self._options = options
        self._deviations = PromptDeviations()

    def __call__(self, batch: RewardBatch) -> Advantages:
        history = _tracked(batch)
        weights = self._weights(batch.rewards, batch.score_norms, batch.lengths)
        prior = self._prior(batch, history, weights)
        valid = weights > 0
        others, size = _others(batch.rewards, weights)
        alone = size <= 0
        # Of a group without any reward: the trust as against one other reward.
        local = prior.within[:, None] / np.where(alone, 1.0, size)
        certain = local + prior.variance[:, None] <= 0
        trust = np.where(certain, 0.5, inverse_variance_confidence(local, prior.variance[:, None]))
        trust = np.where(prior.known[:, None], np.where(alone & valid, 1.0, trust), 0.0)
        residual = batch.rewards - others - trust * (prior.mean[:, None] - others)
        residual = np.where(alone & ~prior.known[:, None] & valid, 0.0, residual)
        deviation = self._deviation(batch, history, prior, _average(trust, valid))
        # With equal weights r - b is proportional to r - baseline, as in RLOO.
        share = weights / np.where(alone, 1.0, weights.sum(axis=1, keepdims=True) - weights)
        if self._options.scale == "prompt":
            factor = self._own_scatter(batch.rewards, weights, prior.within)
            values = residual / np.maximum(deviation[:, None] * factor, 1e-300)
            scale = deviation * _average(factor, valid)
            return Advantages(values, _average(batch.rewards - residual, valid), scale, _average(trust, valid))
        scale = deviation / (1.0 + _average(np.where(alone, 0.0, (1.0 - trust) * share), valid))
        values = residual / deviation[:, None]
        explained = _average(batch.rewards - values * scale[:, None], valid)
        baseline = np.where(valid.any(axis=1), explained, prior.mean)
        return Advantages(values, baseline, scale, _average(trust, valid), cluster_scale=deviation, prior=prior)

    def fold(self, committed: CommittedRewards) -> None:
        history = committed.history
        assert isinstance(history, TrackedHistory)
        weights = self._weights(committed.rewards, committed.score_norms, committed.lengths)
        groups = group_means(committed.rewards, weights)
        self._deviations.fold(committed.prompts, groups, leave_one_out(history, committed.clusters, groups))

    def state(self) -> dict[str, np.ndarray]:
        return self._deviations.state()

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        self._deviations.load_state(state)

    def _weights(self, rewards: Array, score_norms: Array | None, lengths: Array | None) -> Array:
        return reward_weights(rewards, score_norms if self._options.score_weights else None, lengths)

    def _own_scatter(self, rewards: Array, weights: Array, within: Array) -> Array:
        """[M, G] sqrt of the variance that the others of the group show, shrunk to `within`, over `within`."""
        others, size = _others(rewards, weights)
        valid = weights > 0
        clean = np.where(valid, rewards, 0.0)
        # sum over j != i of (r_j - m_i)^2, m_i the mean of the others
        centre = others
        squares = np.array(
            [
                [
                    ((clean[m][valid[m] & (np.arange(clean.shape[1]) != i)] - centre[m, i]) ** 2).sum()
                    for i in range(clean.shape[1])
                ]
                for m in range(len(clean))
            ]
        )
        freedom = np.maximum(size - 1.0, 0.0)
        safe = np.where(within > 0, within, 1.0)[:, None]
        found = (PRIOR_REWARDS * within[:, None] + squares) / (PRIOR_REWARDS + freedom) / safe
        return np.where(within[:, None] > 0, np.sqrt(np.maximum(found, 0.05)), 1.0)

    def _prior(self, batch: RewardBatch, history: TrackedHistory, weights: Array) -> Priors:
        assert batch.clusters is not None
        groups = group_means(batch.rewards, weights)
        cluster = leave_one_out(history, batch.clusters, groups)
        return self._deviations.applied(batch.prompts, groups, cluster) if self._options.own_past else cluster

    def _deviation(self, batch: RewardBatch, history: TrackedHistory, prior: Priors, trust: Array) -> Array:
        """[M] what each group's advantages are divided by, in reward units, above 0."""
        seen = batch.rewards[~np.isnan(batch.rewards)]
        reach = max(history.highest, seen.max(initial=-np.inf)) - min(history.lowest, seen.min(initial=np.inf))
        if self._options.scale == "none" or not 0 < reach < np.inf:
            return np.ones(len(batch.rewards))
        evidence = history.pooled["freedom"] + history.pooled["groups"]
        expected = prior.within + trust * prior.variance
        guessed = (evidence * expected + PRIOR_REWARDS * 0.25 * reach**2) / (evidence + PRIOR_REWARDS)
        return np.maximum(np.sqrt(guessed), LEAST_SCALE * reach)


def _tracked(batch: RewardBatch) -> TrackedHistory:
    if not isinstance(batch.history, TrackedHistory) or batch.clusters is None:
        raise ValueError("the hierarchical estimator needs the clusters of a batch, and their tracked moments")
    return batch.history


def _average(values: Array, valid: npt.NDArray[np.bool_]) -> Array:
    """[M] mean of each group's values where it has rewards; of all its values where it has none. values: [M, G]."""
    counted = np.where(valid.any(axis=1, keepdims=True), valid, True)
    return np.where(counted, values, 0.0).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)


def _others(rewards: Array, weights: Array) -> tuple[Array, Array]:
    """For each completion the weighted mean of its group's other rewards, and how many equal weights would average as well.

    Both [M, G]; size and mean are 0 where there is no other reward.
    """
    valid = weights > 0
    number = valid.sum(axis=1, keepdims=True) - valid
    some = number > 0
    clean = np.where(valid, rewards, 0.0)
    # Deviations from one reward of the group: nothing is lost where all rewards are far from 0.
    origin = np.take_along_axis(clean, valid.argmax(axis=1)[:, None], axis=1) if clean.shape[1] else clean
    weighted = weights * np.where(valid, clean - origin, 0.0)
    total = np.where(some, weights.sum(axis=1, keepdims=True) - weights, 1.0)
    squares = (weights**2).sum(axis=1, keepdims=True) - weights**2
    mean = origin + (weighted.sum(axis=1, keepdims=True) - weighted) / total
    return np.where(some, mean, 0.0), np.where(some, total**2 / np.where(squares > 0, squares, 1.0), 0.0)

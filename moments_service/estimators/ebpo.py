"""EBPO: each group's mean shrunk towards the mean of all groups ever seen, as empirical Bayes does."""

from typing import Literal

import numpy as np

from moments_service.blend import Array, blended_baseline, group_moments, inverse_variance_confidence
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch
from moments_service.estimators.prompt_table import require_names
from moments_service.estimators.whitening import whitened
from moments_service.moments import CommittedRewards

NUMBERS = ("groups", "mean", "squares", "within", "freedom")


class EBPOOptions(EstimatorOptions):
    """See `EBPO`; there is nothing to set."""

    kind: Literal["ebpo"] = "ebpo"

    def create(self) -> Estimator:
        return EBPO()


class EBPO:
    """A = (r - V) whitened over the batch's completions, V = (1 - S) group mean + S global mean.

    S = (s2 / n) / (s2 / n + tau2), n the rewards of the group. Over all groups committed so far: the global mean is the
    mean of their means, tau2 the variance of their means (n - 1, sampling noise not taken out) and s2 the variance inside
    groups, pooled (n - 1 each). They are running sums without fading, merged a batch at a time (Welford, Chan).

    Before two groups are committed S = 0, which leaves the group mean, whitened; so it does as long as every committed
    group had a single reward, since nothing is then known of the variance inside groups. Groups without a reward are not
    counted. A batch of one completion, or of equal r - V, gives 0. The weight is S.
    Source: EBPO (arXiv 2602.05165); METHODS B, read in the paper. Its ordering of prompts by topic is left out.
    """

    def __init__(self) -> None:
        self._numbers = {name: np.zeros(()) for name in NUMBERS}

    def __call__(self, batch: RewardBatch) -> Advantages:
        mean, _, count = group_moments(batch.rewards)
        shrinkage = self._shrinkage(count)
        baseline = blended_baseline(shrinkage, np.full_like(mean, self._numbers["mean"]), mean)
        return whitened(batch.rewards, baseline, np.ones_like(batch.rewards), shrinkage)

    def fold(self, committed: CommittedRewards) -> None:
        mean, variance, count = group_moments(committed.rewards)
        mean, variance, count = (values[count > 0] for values in (mean, variance, count))
        if len(mean) == 0:
            return
        numbers = self._numbers
        before, new = float(numbers["groups"]), float(len(mean))
        difference = float(mean.mean()) - float(numbers["mean"])
        numbers["groups"] += new
        numbers["mean"] += difference * new / (before + new)
        numbers["squares"] += new * float(mean.var()) + difference**2 * before * new / (before + new)
        numbers["within"] += float((variance * count).sum())
        numbers["freedom"] += float((count - 1.0).sum())

    def state(self) -> dict[str, np.ndarray]:
        return {name: number.copy() for name, number in self._numbers.items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        require_names(state, set(NUMBERS))
        self._numbers = {name: np.array(state[name], dtype=np.float64) for name in NUMBERS}

    def _shrinkage(self, count: Array) -> Array:
        """Trust in the global mean for groups of these numbers of rewards, [M]."""
        groups, freedom = float(self._numbers["groups"]), float(self._numbers["freedom"])
        if groups < 2 or freedom < 1:
            return np.zeros_like(count)
        between = float(self._numbers["squares"]) / (groups - 1.0)
        local = float(self._numbers["within"]) / freedom / np.maximum(count, 1.0)
        return inverse_variance_confidence(local, np.full_like(count, between))

"""V0.5: a value known beforehand and the group's mean, combined by a positive-part James-Stein weight."""

from typing import Literal

import numpy as np
from pydantic import Field

from moments_service.blend import Array, blended_baseline, group_moments
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages
from moments_service.estimators.prompt_table import PromptTable, sums_by_prompt
from moments_service.moments import CommittedRewards, Indices


class V05Options(EstimatorOptions):
    """See `V05`."""

    kind: Literal["v05"] = "v05"
    retention: float = Field(0.5, ge=0, le=1)
    """What a visit of a prompt leaves of the rewards before it."""

    def create(self) -> Estimator:
        return V05(self.retention)


class V05:
    """A = r - b, b = t v + (1 - t) mean of the group, with t = min(1, (v_w / n) / (mean - v)^2) the trust in the value v.

    That is the positive-part James-Stein estimate of the prompt's mean, shrunk to v: where the mean is no farther from v
    than sampling n rewards explains (v_w the variance within prompts of the cluster's history), v alone counts; the farther
    it is, the less v is believed. A cluster that history does not know has t = 0, the group's own mean.

    v is the mean of the prompt's own past rewards, each visit leaving `retention` of those before it; a prompt without a
    past has the mean of its cluster's history. The weight is t. A group without a reward is no visit.
    Source: V0.5 (arXiv 2603.10848), second-hand: a digest and the abstract give the combination and its test. The paper's v
    comes from a pretrained value model that reads the prompt; no such model and no embedding is at hand here, and the two
    pasts stand in for it. Its further rollouts on demand are left out.
    """

    def __init__(self, retention: float) -> None:
        """retention: what a visit leaves of the rewards before it."""
        self.retention = retention
        self._prompts = PromptTable({"total": 0.0, "count": 0.0})

    def __call__(self, batch: RewardBatch) -> Advantages:
        mean, _, count = group_moments(batch.rewards)
        history = batch.history
        value = self._value(self._prompts.rows(batch.prompts), history.mean)
        noise = history.within / np.maximum(count, 1.0)
        gap = (mean - value) ** 2
        near = gap <= noise
        trust = np.where(history.seen, np.where(near, 1.0, noise / np.where(near, 1.0, gap)), 0.0)
        return advantages(
            batch.rewards, blended_baseline(trust, value, mean), np.ones_like(mean), epsilon=0.0, weight=trust
        )

    def fold(self, committed: CommittedRewards) -> None:
        mean, _, count = group_moments(committed.rewards)
        prompts, sums = sums_by_prompt(committed.prompts, committed.rewards, mean * count, count)
        rows = self._prompts.enter(prompts)
        for name, new in zip(("total", "count"), sums, strict=True):
            self._prompts.write(name, rows, self.retention * self._prompts.read(name, rows) + new)

    def state(self) -> dict[str, np.ndarray]:
        return self._prompts.state()

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        self._prompts.load_state(state)

    def _value(self, rows: Indices, of_cluster: Array) -> Array:
        """[M] what is expected of each prompt before its group is looked at."""
        total, count = self._prompts.read("total", rows), self._prompts.read("count", rows)
        return np.where(count > 0, total / np.where(count > 0, count, 1.0), of_cluster)

"""DBB: a discounted Beta-Bernoulli posterior of each prompt's success rate, the current group included."""

from typing import Literal

import numpy as np
from pydantic import Field

from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages
from moments_service.estimators.prompt_table import UNSEEN, PromptTable, clipped_scores, scores_by_prompt
from moments_service.moments import CommittedRewards

EPSILON = 1e-6


class DBBOptions(EstimatorOptions):
    """See `DBB`."""

    kind: Literal["dbb"] = "dbb"
    discount: float = Field(0.5, gt=0, le=1)
    """What a visit of a prompt leaves of the counts before it."""

    def create(self) -> Estimator:
        return DBB(self.discount)


class DBB:
    """A = (r - p) / (sqrt(a b) / (a + b) + 1e-6), p = a / (a + b), with a = l a' + S and b = l b' + N - S.

    a' and b' are the prompt's counts after its last visit, 1 and 1 before any; S is the sum of the group's rewards,
    clipped to [0, 1], and N their number (the advantage takes rewards as they are). The posterior that makes the
    advantages holds the current group, yet is stored only when the batch is folded. sqrt(a b) / (a + b) is the
    Bernoulli std at p and never 0: a uniform group is pushed too, the less the more uniform its history was.

    The discount l applies at each visit of a prompt, not with time. If a prompt comes twice in a batch, each group has
    the posterior of its own rewards only, and the fold discounts once and adds both. A group without a reward is no
    visit. The weight is the history's share of the posterior, l H / (l H + N) with H = a' + b', for prompts seen before
    and else 0.
    Source: DBB (arXiv 2603.18444), the variant with division; METHODS B, read in the paper. l = 0.5 is ours: half of the
    posterior is then history in the long run.
    """

    def __init__(self, discount: float) -> None:
        """discount: l, what a visit leaves of the counts before it."""
        self.discount = discount
        self._prompts = PromptTable({"successes": 1.0, "failures": 1.0})

    def __call__(self, batch: RewardBatch) -> Advantages:
        rows = self._prompts.rows(batch.prompts)
        old_successes = self.discount * self._prompts.read("successes", rows)
        old_failures = self.discount * self._prompts.read("failures", rows)
        successes, failures = clipped_scores(batch.rewards)
        alpha, beta = old_successes + successes, old_failures + failures
        mass = alpha + beta
        scale = np.sqrt((alpha / mass) * (beta / mass))
        weight = np.where(rows != UNSEEN, (old_successes + old_failures) / mass, 0.0)
        return advantages(batch.rewards, alpha / mass, scale, EPSILON, weight)

    def fold(self, committed: CommittedRewards) -> None:
        prompts, successes, failures = scores_by_prompt(committed.prompts, committed.rewards)
        rows = self._prompts.enter(prompts)
        for name, new in (("successes", successes), ("failures", failures)):
            self._prompts.write(name, rows, self.discount * self._prompts.read(name, rows) + new)

    def state(self) -> dict[str, np.ndarray]:
        return self._prompts.state()

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        self._prompts.load_state(state)

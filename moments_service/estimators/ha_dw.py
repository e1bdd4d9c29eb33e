"""HA-DW: GRPO's advantages, reweighted by how hard a prompt is beside what the policy solves lately."""

from typing import Literal

import numpy as np
from pydantic import Field

from moments_service.blend import Array, group_moments
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch
from moments_service.estimators.grpo import grpo
from moments_service.estimators.prompt_table import require_names
from moments_service.moments import CommittedRewards

ANCHORS = "anchors"


class HADWOptions(EstimatorOptions):
    """See `HADW`."""

    kind: Literal["ha_dw"] = "ha_dw"
    scale: float = Field(1.3, gt=0)
    """Factor on every weight (lambda)."""
    rate: float = Field(0.1, ge=0, le=1)
    """How fast the anchor follows the batches' accuracy, times its own deviation (eta)."""
    window: int = Field(50, ge=1)
    """How many past anchors that deviation is of."""

    def create(self) -> Estimator:
        return HADW(self)


class HADW:
    """A = GRPO's A times scale exp(-sign(A) (p - C)), p the group's mean of x = r clipped to [0, 1] and C the anchor.

    A hard prompt (p below C) has its successes pushed more and its failures less; an easy one the other way round. The
    anchor starts as the first batch's mean of x; then C = (1 - e) C + e y with y the batch's mean and e = rate times the std
    of the last `window` anchors (1 while there are fewer than two). The batch at hand moves the anchor that weighs it, and
    the move is kept when it is folded. Read like this the anchor soon all but stands still: its own deviation shrinks.

    Baseline and scale reported are GRPO's; each sign of A has a factor of its own. The weight is 0: history moves the
    factor, not the baseline. Uniform groups give 0.
    Source: HA-DW (arXiv 2601.08521), reconstructed from a third party's notes and sketch of its equations 7 to 16; neither
    the paper's own text nor code of its authors was seen.
    """

    def __init__(self, options: HADWOptions) -> None:
        self.factor, self.rate, self.window = options.scale, options.rate, options.window
        self._anchors = np.zeros(0)

    def __call__(self, batch: RewardBatch) -> Advantages:
        plain = grpo(batch)
        anchor = self._moved(batch.rewards)
        if anchor is None:
            return plain
        mean, _, _ = group_moments(np.clip(batch.rewards, 0.0, 1.0))
        weight = self.factor * np.exp(-np.sign(plain.values) * (mean - anchor)[:, None])
        return Advantages(plain.values * weight, plain.baseline, plain.scale, plain.weight)

    def fold(self, committed: CommittedRewards) -> None:
        anchor = self._moved(committed.rewards)
        if anchor is not None:
            self._anchors = np.append(self._anchors, anchor)[-self.window :]

    def state(self) -> dict[str, np.ndarray]:
        return {ANCHORS: self._anchors.copy()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        require_names(state, {ANCHORS})
        self._anchors = np.array(state[ANCHORS], dtype=np.float64)

    def _moved(self, rewards: Array) -> float | None:
        """The anchor once a batch, [M, G], is looked at; None for a batch without any reward."""
        known = rewards[~np.isnan(rewards)]
        if not len(known):
            return None
        accuracy = float(np.clip(known, 0.0, 1.0).mean())
        if not len(self._anchors):
            return accuracy
        deviation = float(self._anchors.std()) if len(self._anchors) > 1 else 1.0
        step = self.rate * deviation
        return (1.0 - step) * float(self._anchors[-1]) + step * accuracy

"""KAE: the baseline is a kernel average of the prompt's own past rewards over iteration time."""

from typing import Literal

import numpy as np
from pydantic import Field

from moments_service.blend import Array, group_moments
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages
from moments_service.estimators.prompt_table import UNSEEN, PromptTable, require_names, sums_by_prompt
from moments_service.estimators.rloo import rloo
from moments_service.moments import CommittedRewards, Indices

CLOCK = "iteration"


class KAEOptions(EstimatorOptions):
    """See `KAE`."""

    kind: Literal["kae"] = "kae"
    bandwidth: float = Field(32.0, gt=0)
    """Width of the kernel, in iterations: how much older a visit may be than the newest and still count."""
    visits: int = Field(8, ge=1, le=64)
    """How many visits of each prompt are remembered, the newest ones."""

    def create(self) -> Estimator:
        return KAE(self)


class KAE:
    """A = r - b, b = sum of w_v R_v / sum of w_v n_v over the prompt's remembered visits v (Nadaraya-Watson).

    R_v is the sum of the n_v raw rewards of visit v and w_v = exp(-(u / bandwidth)^2 / 2), u how many folded batches ago it
    was. Only the weights' ratios count: a prompt that was away for long has the mean of its last visits, however old.
    A prompt without a past is compared with the others of its group, as RLOO does, so a single completion of it gives 0.
    A prompt that comes twice in a batch has one visit; a group without a reward is none, and a batch without any no
    iteration. The weight is 1 for prompts with a past and else 0.
    Source: KAE (arXiv 2604.28005), second-hand: a digest says kernel, own past and iteration time. The Gaussian kernel, its
    width, the bound on visits and what a prompt without a past gets are this project's.
    """

    def __init__(self, options: KAEOptions) -> None:
        self.bandwidth = options.bandwidth
        # Visit number v of a prompt lies in slot v modulo their number.
        self._slots = [(f"sum_{slot}", f"count_{slot}", f"at_{slot}") for slot in range(options.visits)]
        self._prompts = PromptTable({"visits": 0.0} | {name: 0.0 for slot in self._slots for name in slot})
        self._iteration = np.zeros(())

    def __call__(self, batch: RewardBatch) -> Advantages:
        rows = self._prompts.rows(batch.prompts)
        known = rows != UNSEEN
        alone = rloo(batch)
        baseline = np.where(known, self._average(rows), alone.baseline)
        scale = np.where(known, 1.0, alone.scale)
        return advantages(batch.rewards, baseline, scale, epsilon=0.0, weight=known.astype(np.float64))

    def fold(self, committed: CommittedRewards) -> None:
        mean, _, count = group_moments(committed.rewards)
        prompts, (totals, counts) = sums_by_prompt(committed.prompts, committed.rewards, mean * count, count)
        if not prompts:
            return
        rows = self._prompts.enter(prompts)
        visits = self._prompts.read("visits", rows)
        for slot, (total, number, at) in enumerate(self._slots):
            here = visits % len(self._slots) == slot
            self._prompts.write(total, rows[here], totals[here])
            self._prompts.write(number, rows[here], counts[here])
            self._prompts.write(at, rows[here], float(self._iteration))
        self._prompts.write("visits", rows, visits + 1.0)
        self._iteration += 1.0

    def state(self) -> dict[str, np.ndarray]:
        return self._prompts.state() | {CLOCK: self._iteration.copy()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        require_names(state, set(self.state()))
        self._prompts.load_state({name: array for name, array in state.items() if name != CLOCK})
        self._iteration = np.array(state[CLOCK], dtype=np.float64)

    def _average(self, rows: Indices) -> Array:
        """The kernel average of each prompt's past, [P]; 0 without one."""
        total, count, at = (
            np.stack([self._prompts.read(names[part], rows) for names in self._slots]) for part in range(3)
        )
        exponent = ((float(self._iteration) - at) / self.bandwidth) ** 2 / 2.0
        # The nearest visit gets weight 1, so that a far past does not vanish altogether.
        nearest = np.where(count > 0, exponent, np.inf).min(axis=0)
        weight = np.where(
            count > 0, np.exp(np.minimum(np.where(np.isfinite(nearest), nearest, 0.0) - exponent, 0.0)), 0.0
        )
        mass = (weight * count).sum(axis=0)
        return (weight * total).sum(axis=0) / np.where(mass > 0, mass, 1.0)

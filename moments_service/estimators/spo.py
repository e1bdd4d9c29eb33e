"""SPO: the baseline is the prompt's own success rate, remembered; groups are not needed."""

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from moments_service.blend import Array
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch
from moments_service.estimators.prompt_table import UNSEEN, PromptTable, require_names, scores_by_prompt
from moments_service.estimators.whitening import whitened
from moments_service.moments import CommittedRewards, Indices

CLOCKS = ("moved", "unmeasured")


class SPOOptions(EstimatorOptions):
    """See `SPO`."""

    kind: Literal["spo"] = "spo"
    d_half: float = Field(0.06, gt=0)
    """Movement of the policy, in nats per token, that halves the past."""
    rho_min: float = Field(0.875, ge=0, lt=1)
    """The least that a visit of a prompt leaves of what is remembered of it."""
    rho_max: float = Field(0.96, ge=0, le=1)
    """The most that it leaves; at least rho_min."""
    initial_mass: float = Field(1.0, gt=0)
    """Pseudo-rewards, at 1/2, of a prompt never seen; 1 / (1 - rho_min) is for a start that was sampled offline."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> "SPOOptions":
        if self.rho_max < self.rho_min:
            raise ValueError(f"rho_max = {self.rho_max:g}: it must be between rho_min = {self.rho_min:g} and 1")
        return self

    def create(self) -> Estimator:
        return SPO(self)

    @property
    def fades_by_move(self) -> bool:
        return True


class SPO:
    """A = (r - v) whitened over the batch's completions, v = a / (a + b) the prompt's remembered success rate.

    After the policy step a = rho a + sum of x and b = rho b + sum of (1 - x), x the rewards clipped to [0, 1] (the
    advantage takes them as they are). rho = clip(2^(-D / d_half), rho_min, rho_max), D how far the policy has moved since
    it last sampled the prompt: the sum of the mean absolute log-ratios per token of the steps since, that of the visit's
    own step included. Where one of those steps was not measured, rho = rho_min: forgetting is then as fast as it gets.

    A prompt never seen has v = 1/2 with the mass `initial_mass`, which its first visit does not fade. The source starts at 1
    online; its 1 / (1 - rho_min), 8 by default, belongs to a start that is sampled offline, which is not done here. If a prompt comes twice in a batch, both groups have the same v and count as one
    visit. A group without a reward is no visit. A batch of one completion, or of equal r - v, gives 0. The weight is 1
    for prompts seen before and else 0. The paper samples prompts by sqrt(v (1 - v)) + 0.05; `prompts.order: signal` with one
    cluster for each prompt comes near.
    Source: SPO (arXiv 2509.13232); METHODS B, from the recipe in verl.
    """

    def __init__(self, options: SPOOptions) -> None:
        self.d_half, self.rho_min, self.rho_max = options.d_half, options.rho_min, options.rho_max
        each = 0.5 * options.initial_mass
        self._prompts = PromptTable({"successes": each, "failures": each, "moved_at": 0.0, "unmeasured_at": 0.0})
        self._clocks = {name: np.zeros(()) for name in CLOCKS}

    def __call__(self, batch: RewardBatch) -> Advantages:
        rows = self._prompts.rows(batch.prompts)
        successes, failures = self._prompts.read("successes", rows), self._prompts.read("failures", rows)
        seen = (rows != UNSEEN).astype(np.float64)
        return whitened(batch.rewards, successes / (successes + failures), np.ones_like(batch.rewards), seen)

    def fold(self, committed: CommittedRewards) -> None:
        prompts, successes, failures = scores_by_prompt(committed.prompts, committed.rewards)
        known = self._prompts.rows(prompts) != UNSEEN
        rows = self._prompts.enter(prompts)
        kept = np.where(known, self._retention(rows), 1.0)
        self._prompts.write("successes", rows, kept * self._prompts.read("successes", rows) + successes)
        self._prompts.write("failures", rows, kept * self._prompts.read("failures", rows) + failures)
        # The batch was sampled before its own step: the move of that step already counts for the next visit.
        self._prompts.write("moved_at", rows, float(self._clocks["moved"]))
        self._prompts.write("unmeasured_at", rows, float(self._clocks["unmeasured"]))
        if committed.move is None:
            self._clocks["unmeasured"] += 1.0
        else:
            self._clocks["moved"] += committed.move.log_ratio

    def state(self) -> dict[str, np.ndarray]:
        return self._prompts.state() | {name: clock.copy() for name, clock in self._clocks.items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        require_names(state, set(self.state()))
        self._prompts.load_state({name: array for name, array in state.items() if name not in CLOCKS})
        self._clocks = {name: np.array(state[name], dtype=np.float64) for name in CLOCKS}

    def _retention(self, rows: Indices) -> Array:
        """What the policy's movement leaves of each prompt's counts, [P]."""
        moved = self._clocks["moved"] - self._prompts.read("moved_at", rows)
        measured = self._prompts.read("unmeasured_at", rows) == self._clocks["unmeasured"]
        # Halvings beyond this are below any rho_min that differs from 0.
        halvings = np.minimum(moved / self.d_half, 1000.0)
        return np.where(measured, np.clip(0.5**halvings, self.rho_min, self.rho_max), self.rho_min)

"""Train Long, Think Short: a budget that is told in the prompt, and shrinks as the run goes on."""

from typing import Literal

import numpy as np
from pydantic import Field

from actors.shaping.protocol import Budgeted, Rule, Shaped, ShapingBatch


class BudgetCurriculum(Budgeted):
    """First long answers are well paid, later short ones."""

    kind: Literal["budget_curriculum"] = "budget_curriculum"
    start: int = Field(ge=1)
    """The first budget, in tokens; the source has 256."""
    decay: float = Field(0.9, gt=0, lt=1)
    """What the budget is multiplied by, again and again."""
    every: int = Field(100, ge=1)
    """Steps between two budgets."""
    shape: Literal["triangle", "one_sided"] = "triangle"
    """`triangle` pays most at the budget and nothing at none or twice of it; `one_sided` pays all the same below it."""
    weight: float = Field(0.5, gt=0)
    """What keeping to the budget is worth, in units of reward."""

    def create(self) -> Rule:
        return self

    def budget(self, group_id: str, version: int, seed: int) -> int:
        """B_t = max(1, B_0 decay^floor(t / every)), in whole tokens."""
        return max(1, int(self.start * self.decay ** (version // self.every)))

    @property
    def largest_budget(self) -> int:
        return self.start

    def __call__(self, batch: ShapingBatch) -> Shaped:
        """r' = r + weight * t; triangle: t = max(0, 1 - |L - B| / B); one-sided: t = 1 up to B, max(0, 1 - (L - B) / B) from there.

        Source: Train Long, Think Short (arXiv 2508.08940) for the schedule; the form of t is put together from what is said of it, and
        its weight is ours. Its format reward is a part of a verifier here.
        """
        budget = batch.observed[self.kind]
        over = (batch.lengths - budget) / budget
        away = np.abs(over) if self.shape == "triangle" else np.maximum(over, 0.0)
        term = np.maximum(0.0, 1.0 - away)
        paid = np.where(self.whom(batch), self.weight * term, 0.0)
        return Shaped(batch.rewards + paid, metrics={"budget": float(np.nanmean(budget))})

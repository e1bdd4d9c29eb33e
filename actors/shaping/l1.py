"""L1 (LCPO): the policy is told how many tokens to use, and paid for keeping to it."""

from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from actors.shaping.protocol import Budgeted, Rule, Shaped, ShapingBatch
from moments_service.seeding import derive_seed


class L1(Budgeted):
    """A budget for each group, drawn at random and told in its prompt."""

    kind: Literal["l1"] = "l1"
    mode: Literal["exact", "max"] = "exact"
    """`exact`: as many tokens as were told; `max`: no more."""
    alpha: float = Field(3e-4, gt=0)
    """Price of each token away from the budget, in units of reward."""
    tokens: tuple[int, int]
    """Least and largest budget; the source has [100, 4000]."""

    @field_validator("tokens")
    @classmethod
    def _a_range(cls, tokens: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= tokens[0] <= tokens[1]:
            raise ValueError(f"[{tokens[0]}, {tokens[1]}] is no range of budgets: [least, largest] from 1 on is")
        return tokens

    def create(self) -> Rule:
        return self

    def budget(self, group_id: str, version: int, seed: int) -> int:
        """Uniform between the two, the same for all completions of a group."""
        least, largest = self.tokens
        return least + derive_seed(seed, "budget", group_id) % (largest - least + 1)

    @property
    def largest_budget(self) -> int:
        return self.tokens[1]

    def __call__(self, batch: ShapingBatch) -> Shaped:
        """Exact: r' = r - alpha |n - L|. Max: r' = r * clip(alpha (n - L) + 1/2, 0, 1), n the budget.

        Source: L1 (arXiv 2503.04697), whose exact form charges wrong answers, too; here right ones alone unless told otherwise.
        """
        room = batch.observed[self.kind] - batch.lengths
        if self.mode == "exact":
            return Shaped(batch.rewards - np.where(self.whom(batch), self.alpha * np.abs(room), 0.0))
        factor = np.clip(self.alpha * room + 0.5, 0.0, 1.0)
        return Shaped(batch.rewards * np.where(batch.correct, factor, 1.0))

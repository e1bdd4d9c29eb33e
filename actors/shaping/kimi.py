"""The length reward of Kimi k1.5: the shortest of a group is half a reward up, the longest half a reward down."""

from typing import Literal

import numpy as np
from pydantic import Field

from actors.shaping.protocol import Guarded, Rule, Shaped, ShapingBatch


class Kimi(Guarded):
    """Goes by where a completion's length lies between the shortest and the longest of its group."""

    kind: Literal["kimi"] = "kimi"
    weight: float = Field(1.0, gt=0)
    """How much the length counts beside the reward, in units of reward from the shortest to the longest."""

    def create(self) -> Rule:
        return self

    def __call__(self, batch: ShapingBatch) -> Shaped:
        """r' = r + weight * t: t = lam = 0.5 - (L - Lmin) / (Lmax - Lmin) for right answers, min(0, lam) for wrong ones; 0 where all
        of a group are as long.

        Lmin, Lmax: over all completions of the group with a reward. Source: Kimi k1.5 (arXiv 2501.12599), section 2.3.3, which
        punishes long wrong answers, too; here right ones alone unless told otherwise.
        """
        shortest = np.where(batch.scored, batch.lengths, np.inf).min(axis=1, keepdims=True)
        longest = np.where(batch.scored, batch.lengths, -np.inf).max(axis=1, keepdims=True)
        span = longest - shortest
        lam = np.where(span > 0, 0.5 - (batch.lengths - shortest) / np.where(span > 0, span, 1.0), 0.0)
        term = np.where(batch.correct, lam, np.minimum(lam, 0.0))
        return Shaped(batch.rewards + np.where(self.whom(batch), self.weight * term, 0.0))

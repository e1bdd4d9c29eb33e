"""Soft overlong punishment (DAPO): a slope before the limit in the place of a cliff at it."""

from typing import Literal

import numpy as np
from pydantic import Field

from actors.shaping.protocol import Guarded, Limited, Rule, Shaped, ShapingBatch


class SoftOverlong(Guarded, Limited):
    """Takes off what grows from 0 to `penalty` over the last tokens before the limit."""

    kind: Literal["soft_overlong"] = "soft_overlong"
    window: float = Field(0.2, gt=0, le=1)
    """Share of the longest length over which the penalty grows; DAPO's 4096 of 20480 tokens."""
    penalty: float = Field(1.0, gt=0)
    """What is taken off at the limit and above, in units of reward."""

    def create(self) -> Rule:
        return self

    def __call__(self, batch: ShapingBatch) -> Shaped:
        """r' = r + penalty * p: p = 0 up to Lm - Lc, (Lm - Lc - L) / Lc from there, -1 from Lm on; Lm the limit, Lc its window.

        Source: DAPO (arXiv 2503.14476), Eq. 13, which applies it to all completions; here to right ones unless told otherwise.
        """
        limit = self.limit(batch)
        window = self.window * limit
        slope = np.clip((limit - window - batch.lengths) / window, -1.0, 0.0)
        return Shaped(batch.rewards + np.where(self.whom(batch), self.penalty * slope, 0.0))

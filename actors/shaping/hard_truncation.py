"""Hard truncation (DLER): an answer that is too long is worth nothing, however right it is."""

from typing import Literal

import numpy as np

from actors.shaping.protocol import Limited, Rule, Shaped, ShapingBatch


class HardTruncation(Limited):
    """Takes the whole reward of answers that are longer than the limit."""

    kind: Literal["hard_truncation"] = "hard_truncation"

    def create(self) -> Rule:
        return self

    def __call__(self, batch: ShapingBatch) -> Shaped:
        """r' = min(r, 0) where a length limit ended the completion or L > limit, else r.

        Source: DLER (arXiv 2510.15110), without its smaller limit for easy prompts.
        """
        too_long = batch.truncated | (batch.lengths > self.limit(batch))
        return Shaped(np.where(too_long, np.minimum(batch.rewards, 0.0), batch.rewards))

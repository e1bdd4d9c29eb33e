"""Format and length: a reward without any gold answer, for completions of the right form and about half the longest length."""

from typing import ClassVar, Literal

import numpy as np

from actors.rollout.sample import Sample
from actors.shaping.protocol import Limited, Rule, Shaped, ShapingBatch, Watching

PEAK = 0.5
"""Share of the longest length at which the length reward is largest."""


class FormatLength(Watching, Limited):
    """The learner gets this in the place of the verifier's reward, which is logged and remembered as ever."""

    kind: Literal["format_length"] = "format_length"
    by_correctness: ClassVar[bool] = False
    marks: tuple[str, ...] = ("\\boxed{", "}")
    """Texts that a completion of the right form has, in this order."""

    def create(self) -> Rule:
        return self

    def observe(self, sample: Sample, text: str) -> float:
        """1 where all marks stand there in their order, else 0."""
        at = 0
        for mark in self.marks:
            if (found := text.find(mark, at)) < 0:
                return 0.0
            at = found + len(mark)
        return 1.0

    def __call__(self, batch: ShapingBatch) -> Shaped:
        """r' = 1 + t where the form is right, else min(0, t); x = L / Lmax, p = 1/2, t = 1 - (1 - x/p)^2 up to p and
        1 - 2 ((x - p) / (1 - p))^2 from there. Without labels: the raw reward has no part in it, nor has history.

        Source: arXiv 2505.19439.
        """
        x = batch.lengths / self.limit(batch)
        rising, falling = 1.0 - (1.0 - x / PEAK) ** 2, 1.0 - 2.0 * ((x - PEAK) / (1.0 - PEAK)) ** 2
        term = np.where(x <= PEAK, rising, falling)
        formed = batch.observed[self.kind] > 0
        rewards = np.where(formed, 1.0 + term, np.minimum(0.0, term))
        return Shaped(
            np.where(batch.scored, rewards, np.nan),
            alone=True,
            metrics={"formed": float(formed[batch.scored].mean())},
        )

"""ARLCP: right answers lose for turning back on themselves and for their length, by how much they turn back."""

import re
from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import Field

from actors.rollout.sample import Sample
from actors.shaping.protocol import Rule, Shaped, ShapingBatch, Watching
from actors.shaping.statistics import sigmoid, standardised

FEW, MANY = 40, 80
"""Reflections up to which a completion has few of them, and above which it has many."""
SHARES = (0.25, 0.5, 0.75)
"""What of the penalty is for reflections where they are few, some, many; the rest is for length. The source's 0.05, 0.10, 0.15 of 0.2."""


class Arlcp(Watching):
    """Counts the words with which reasoning turns back."""

    kind: Literal["arlcp"] = "arlcp"
    penalty: float = Field(0.2, gt=0)
    """The most that a right answer can lose, in units of reward."""
    words: tuple[str, ...] = Field(
        (
            "wait", "alternatively", "hold on", "another thought", "verify", "think again", "but", "however", "alternative", "check",
            "double-check", "oh", "hmm",
        ),
        min_length=1,
    )  # fmt: skip
    """What counts as a reflection, as whole words in upper or lower case."""

    def create(self) -> Rule:
        return self

    def observe(self, sample: Sample, text: str) -> float:
        """How many reflections there are."""
        return float(len(_pattern(self.words).findall(text)))

    def __call__(self, batch: ShapingBatch) -> Shaped:
        """r' = r - w1 * sigmoid(z of reflections) - w2 * sigmoid(z of length) for right answers, else r; z over the group's right answers,
        w1 = 0.05, 0.10, 0.15 for up to 40, up to 80, more reflections, w2 = 0.2 - w1.

        Source: ARLCP (arXiv 2602.12113), and its words.
        """
        reflections = np.where(batch.correct, batch.observed[self.kind], 0.0)
        share = np.array(SHARES)[(reflections > FEW).astype(np.int64) + (reflections > MANY)]
        by_reflections = share * sigmoid(standardised(reflections, batch.correct))
        by_length = (1.0 - share) * sigmoid(standardised(batch.lengths, batch.correct))
        lost = self.penalty * (by_reflections + by_length)
        mean = float(batch.observed[self.kind][batch.scored].mean())
        return Shaped(batch.rewards - np.where(batch.correct, lost, 0.0), metrics={"reflections": mean})


@lru_cache(8)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(map(re.escape, words)) + r")\b", re.IGNORECASE)

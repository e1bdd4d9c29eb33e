"""Unlikeliness: a right answer that the policy hardly ever gives is worth more than one that it gives anyway."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from actors.rollout.sample import Sample
from actors.shaping.protocol import Rule, Shaped, ShapingBatch, Watching


class Unlikeliness(Watching):
    """Takes from the reward of right answers, the more the likelier they were among their group."""

    kind: Literal["unlikeliness"] = "unlikeliness"
    by_length: ClassVar[bool] = False
    beta: float = Field(0.25, gt=0, lt=1)
    """Share of its reward that the likeliest answer of a large group loses."""

    def create(self) -> Rule:
        return self

    def observe(self, sample: Sample, text: str) -> float:
        """Log-prob of the whole completion under the policy that sampled it, in nats."""
        return float(np.sum(sample.logprobs[sample.loss_mask], dtype=np.float64))

    def __call__(self, batch: ShapingBatch) -> Shaped:
        """r' = r (1 - beta * rank / G) for right answers; rank: how many of the group's G completions with a reward are less likely, as
        many as equally likely ones have on average.

        Source: Rewarding the Unlikely (arXiv 2506.02355).
        """
        logprobs = np.where(batch.scored, batch.observed[self.kind], np.nan)
        below = (logprobs[:, None, :] < logprobs[:, :, None]).sum(axis=2)
        alike = (logprobs[:, None, :] == logprobs[:, :, None]).sum(axis=2)
        rank = below + (np.maximum(alike, 1) - 1) / 2
        size = np.maximum(batch.scored.sum(axis=1, keepdims=True), 1)
        return Shaped(batch.rewards * np.where(batch.correct, 1.0 - self.beta * rank / size, 1.0))

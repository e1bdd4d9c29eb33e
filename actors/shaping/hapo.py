"""HAPO: an answer is compared with the shortest right one that its prompt ever had."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from actors.shaping.protocol import Guarded, Shaped, ShapingBatch

LOWEST = -0.7
"""A right answer loses no more than this for its length."""


class HapoOptions(Guarded):
    """Pays for being shorter than the shortest right answer so far, and charges for being longer."""

    kind: Literal["hapo"] = "hapo"
    weight: float = Field(1.0, gt=0)
    """How much the length counts beside the reward."""

    def create(self) -> "Hapo":
        return Hapo(self)


class Hapo:
    """Remembers the shortest right answer of every prompt that was trained on, in tokens."""

    def __init__(self, options: HapoOptions) -> None:
        self._options = options
        self._shortest: dict[str, int] = {}

    def __call__(self, batch: ShapingBatch) -> Shaped:
        """r' = r + weight * t: f = cos(min(pi / 2 * L / h, pi)), t = max(f, -0.7) for right answers, min(f, 0) for wrong ones, 0 where
        the prompt had no right answer before this batch.

        h: tokens of its shortest one. Source: HAPO (arXiv 2505.11225), which charges wrong answers, too; here right ones alone
        unless told otherwise.
        """
        shortest = np.array([self._shortest.get(prompt, np.nan) for prompt in batch.prompts])[:, None]
        f = np.cos(np.minimum(np.pi / 2 * batch.lengths / shortest, np.pi))
        term = np.where(batch.correct, np.maximum(f, LOWEST), np.minimum(f, 0.0))
        touched = self._options.whom(batch) & ~np.isnan(shortest)
        known = float((~np.isnan(shortest)).mean())
        return Shaped(
            batch.rewards + np.where(touched, self._options.weight * term, 0.0), metrics={"known_prompts": known}
        )

    def learn(self, batch: ShapingBatch) -> None:
        lengths = np.where(batch.correct, batch.lengths, np.inf).min(axis=1)
        for prompt, length in zip(batch.prompts, lengths.tolist(), strict=True):
            if length < self._shortest.get(prompt, np.inf):
                self._shortest[prompt] = int(length)

    def state(self) -> dict[str, Any]:
        return {"shortest": dict(self._shortest)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._shortest = {prompt: int(length) for prompt, length in state["shortest"].items()}

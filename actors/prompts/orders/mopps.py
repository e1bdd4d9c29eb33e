"""MoPPS: prompts whose success rate, drawn from what is believed of it, comes nearest to one half."""

from collections.abc import Sequence

import numpy as np

from actors.prompts.orders.remembering import RankedOrder
from moments_service.blend import Array
from moments_service.seeding import derive_seed

TARGET = 0.5
"""Success rate of the prompts that are wanted."""
PRIOR = 1.0
"""Pseudo-counts of success and of failure."""
RETENTION = 0.5
"""What a visit of a prompt leaves of the counts before it; what it takes comes back as the prior."""


class MoppsOrder(RankedOrder):
    """a and b count each prompt's successes and failures: a = d a + (1 - d) + S at a visit with S successes, and b alike.

    After every commit a success rate is drawn from Beta(a, b) for every prompt (Thompson sampling), and prompts are dealt
    in the order of its distance from 1/2. Candidates are all prompts, where the source draws from those that its loader
    gives next. A prompt starves if its counts say so and are never looked at again: only visits fade them. A prompt that was
    all right in its only group of 8 is drawn within .1 of one half once in a hundred times.
    Source: MoPPS (arXiv 2507.04632); METHODS G, the update as in its recipe for verl, whose default for d is 1, which never
    forgets; d = .5 is this project's. The numbers drawn are those of numpy's generator.
    """

    name = "mopps"

    def __init__(self, ids: Sequence[str], seed: int) -> None:
        """ids: N, sorted."""
        super().__init__(ids, seed, {"successes": PRIOR, "failures": PRIOR})

    def _take(self, row: int, step: int, successes: float, count: float, uniform: bool) -> None:
        for name, new in (("successes", successes), ("failures", count - successes)):
            values = self._memory[name]
            values[row] = RETENTION * values[row] + (1.0 - RETENTION) * PRIOR + new

    def _keys(self, step: int) -> Array:
        generator = np.random.default_rng(derive_seed(self._seed, "mopps", step))
        return np.abs(generator.beta(self._memory["successes"], self._memory["failures"]) - TARGET)

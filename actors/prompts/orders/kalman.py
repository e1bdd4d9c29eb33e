"""KGPS: a Kalman filter follows the logit of each prompt's success, and prompts near one half come most."""

import math
from collections.abc import Sequence

import numpy as np

from actors.prompts.orders.remembering import RankedOrder
from moments_service.blend import Array
from moments_service.seeding import derive_seed

FIRST_VARIANCE = 4.0
"""Of the logit of a prompt that nobody has seen: two standard deviations reach from .02 to .98."""
PROCESS_VARIANCE = 0.05
"""What one policy step adds to the variance of every logit."""


class KalmanOrder(RankedOrder):
    """A prompt's logit has mean x and variance P. A step adds P += q; a group with S successes of n observes
    y = log((S + 1/2) / (n - S + 1/2)) with variance R = 1 / (S + 1/2) + 1 / (n - S + 1/2): K = P / (P + R), x += K (y - x),
    P = (1 - K) P.

    After every commit prompts are drawn without replacement in proportion to m (1 - m), m = sigmoid(x / sqrt(1 + pi P / 8))
    the expected success rate. No prompt starves: the longer it is not seen the more P grows, and m goes to 1/2.
    Source: KGPS (arXiv 2607.27610), second-hand: a digest says logit, process noise by policy step and prompts near 1/2. The
    observation (the empirical logit and its variance), both variances and the draw are this project's.
    """

    name = "kalman"

    def __init__(self, ids: Sequence[str], seed: int) -> None:
        """ids: N, sorted."""
        super().__init__(ids, seed, {"logit": 0.0, "variance": FIRST_VARIANCE, "seen_at": 0.0})

    def _take(self, row: int, step: int, successes: float, count: float, uniform: bool) -> None:
        logit, variance, seen_at = (self._memory[name] for name in ("logit", "variance", "seen_at"))
        predicted = variance[row] + PROCESS_VARIANCE * max(step + 1 - seen_at[row], 0.0)
        right, wrong = successes + 0.5, count - successes + 0.5
        gain = predicted / (predicted + 1.0 / right + 1.0 / wrong)
        logit[row] += gain * (math.log(right / wrong) - logit[row])
        variance[row] = (1.0 - gain) * predicted
        seen_at[row] = step + 1

    def _keys(self, step: int) -> Array:
        age = np.maximum(step + 1 - self._memory["seen_at"], 0.0)
        variance = self._memory["variance"] + PROCESS_VARIANCE * age
        mean = 1.0 / (1.0 + np.exp(-self._memory["logit"] / np.sqrt(1.0 + math.pi * variance / 8.0)))
        # The least of exponential times over weights: a draw in proportion to them, without replacement (Efraimidis, Spirakis).
        times = np.random.default_rng(derive_seed(self._seed, "kalman", step)).exponential(size=len(mean))
        return times / (mean * (1.0 - mean))

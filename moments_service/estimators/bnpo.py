"""BNPO: rewards normalised by a Beta distribution fitted to the batch's success rates."""

import math
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from moments_service.blend import Array, group_moments
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages
from moments_service.estimators.grpo import sample_deviation

LARGEST_WEIGHT = 1e6
"""1 / density is cut here, as in the authors' code."""
SMALLEST_VARIANCE = 1e-12
"""Success rates that differ by less are equal but for rounding."""


class BNPO(EstimatorOptions):
    """A = (x - p) / Beta(p; a, b), p the mean of x in the group and x = (r - low) / (high - low), clipped to [0, 1].

    The density is fitted by moments to the p of the batch's groups: with mean m and variance v of p (n - 1) and
    c = m (1 - m) / v - 1, a = max(1, 1 + c m / 3) and b = max(1, 1 + c (1 - m) / 3); 1 / density is at most 1e6.
    Fewer than two groups with a reward, or groups with equal p, fit nothing: a = b = 1, A = x - p. Uniform groups and
    single rewards give 0. Where rewards leave [low, high], baseline and scale are those of the clipped reward.
    Source: BNPO (arXiv 2506.02864); METHODS B, from the authors' code; n - 1 is what its variance does by default.
    """

    kind: Literal["bnpo"] = "bnpo"
    low: float = Field(0.0)
    """The reward that x = 0 stands for."""
    high: float = Field(1.0)
    """The reward that x = 1 stands for."""

    @model_validator(mode="after")
    def _high_is_above_low(self) -> "BNPO":
        if self.high <= self.low:
            raise ValueError(f"high = {self.high:g}: it must be above low = {self.low:g}")
        return self

    def create(self) -> Estimator:
        return self

    def __call__(self, batch: RewardBatch) -> Advantages:
        width = self.high - self.low
        rewards = np.clip(batch.rewards, self.low, self.high)
        mean, _, count = group_moments((rewards - self.low) / width)
        alpha, beta = fitted_beta(mean[count > 0])
        density = np.array([beta_density(p, alpha, beta) for p in mean.tolist()])
        return advantages(rewards, self.low + width * mean, width * density, epsilon=0.0)


def fitted_beta(rates: Array) -> tuple[float, float]:
    """The parameters (a, b) of the normalising Beta density. rates: [M] success rates in [0, 1]."""
    variance = float(sample_deviation(rates[None])[0]) ** 2
    if len(rates) < 2 or variance <= SMALLEST_VARIANCE:
        return 1.0, 1.0
    mean = float(rates.mean())
    concentration = mean * (1.0 - mean) / variance - 1.0
    return max(1.0, 1.0 + concentration * mean / 3.0), max(1.0, 1.0 + concentration * (1.0 - mean) / 3.0)


def beta_density(p: float, alpha: float, beta: float) -> float:
    """The density of Beta(alpha, beta) at p in [0, 1], but at least 1e-6. alpha, beta >= 1."""
    if (p <= 0 and alpha > 1) or (p >= 1 and beta > 1):
        return 1.0 / LARGEST_WEIGHT
    logarithm = math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
    if alpha > 1:
        logarithm += (alpha - 1.0) * math.log(p)
    if beta > 1:
        logarithm += (beta - 1.0) * math.log1p(-p)
    return max(math.exp(logarithm), 1.0 / LARGEST_WEIGHT)

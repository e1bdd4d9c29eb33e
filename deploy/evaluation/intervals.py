"""How sure a mean over prompts is. Samples of one prompt are alike, so prompts are what is counted.

Source: Miller, Adding Error Bars to Evals, arXiv 2411.00640 (clustered errors, paired differences, power).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
"""Of all intervals."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the interval around it."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2


def clustered_error(clusters: Sequence[Sequence[float]]) -> float:
    """Standard error of the mean of all values, where those of one cluster depend on each other; 0 for a single cluster."""
    count, size = len(clusters), sum(map(len, clusters))
    if count < 2:
        return 0.0
    mean = math.fsum(value for values in clusters for value in values) / size
    squares = math.fsum(math.fsum(value - mean for value in values) ** 2 for values in clusters)
    return math.sqrt(squares * count / (count - 1)) / size


def t_interval(values: Sequence[float]) -> Interval | None:
    """Of the mean of independent values, one a prompt, by Student's t; None of fewer than two."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean = math.fsum(values) / len(values)
    reach = clustered_error([[value] for value in values]) * float(t.ppf((1 + LEVEL) / 2, len(values) - 1))
    return Interval(mean, mean - reach, mean + reach)


def exact_interval(values: Sequence[float], draws: float = 1.0) -> Interval | None:
    """The same for values in [0, 1], also where nearly all of them, or all, are 0 or 1; None of fewer than two.

    draws: of how many independent draws each value is the mean, at most.

    Clopper and Pearson's interval for as many draws of one chance as are as sure as these values are. Source: Korn and Graubard,
    Survey Methodology 24 (1998). Of their degrees of freedom, prompts less one, only those count that are on the rarer side, above 0 or
    below 1: of the others the variance learned nothing. It is at most as sure as all draws, and at least as sure as one of each prompt,
    which is how sure it is where all values agree.
    """
    count = len(values)
    if count < 2:
        return None
    from scipy.stats import beta, t

    mean = min(math.fsum(values) / count, 1.0)
    tail = (1 - LEVEL) / 2
    effective = float(count)
    if (error := clustered_error([[value] for value in values])) > 0:
        rarer = min(sum(value > 0 for value in values), sum(value < 1 for value in values))
        widening = float(t.ppf(1 - tail, count * draws - 1) / t.ppf(1 - tail, max(rarer - 1, 1)))
        effective = mean * (1 - mean) / error**2 * widening**2
    effective = min(max(effective, float(count)), count * draws)
    right, wrong = mean * effective, (1 - mean) * effective
    low = float(beta.ppf(tail, right, wrong + 1)) if right > 0 else 0.0
    high = float(beta.ppf(1 - tail, right + 1, wrong)) if wrong > 0 else 1.0
    return Interval(mean, low, high)


def bootstrap_interval(values: Sequence[float], draws: int = 10_000, seed: int = 0) -> Interval | None:
    """The same by resampling prompts: the quantiles of the means of `draws` resamples; None of fewer than two."""
    if len(values) < 2:
        return None
    random, count = np.random.default_rng(seed), len(values)
    # Prompts of one value are drawn as one: the same distribution, at the cost of the values that there are.
    levels, times = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    drawn = random.multinomial(count, times / count, size=draws)
    low, high = np.quantile(drawn @ levels / count, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(math.fsum(values) / len(values), float(low), float(high))


def sampling_error(samples: Sequence[Sequence[float]]) -> float | None:
    """Standard error of the mean over these very prompts, were only their samples drawn anew; None without two samples of each.

    samples: of each prompt. What `clustered_error` has beyond it is that other prompts would be other prompts.
    """
    if not samples or min(map(len, samples)) < 2:
        return None
    return math.sqrt(math.fsum(float(np.var(values, ddof=1)) / len(values) for values in samples)) / len(samples)


def prompts_to_see(difference: float, variance: float, power: float = 0.8) -> int:
    """How many prompts show a difference of means with this chance, in a test at 1 - LEVEL.

    variance: of one prompt's difference, see `difference_variance`. Raises ValueError for no difference.
    """
    from scipy.stats import norm

    if difference == 0:
        raise ValueError("no number of prompts shows a difference of 0")
    reach = float(norm.ppf((1 + LEVEL) / 2) + norm.ppf(power))
    return max(2, math.ceil(reach**2 * variance / difference**2))


def difference_variance(samples: Sequence[Sequence[float]], alike: float, drawn: int | None = None) -> float:
    """Expected variance of a prompt's difference between two policies that do about as well as the one that these samples are of.

    samples: of each prompt, two or more.    alike: correlation of what the two policies can do over prompts, in [0, 1].
    drawn: samples of each prompt by each policy, if not as many as here.
    """
    within = math.fsum(float(np.var(values, ddof=1)) for values in samples) / len(samples)
    means = [math.fsum(values) / len(values) for values in samples]
    noise = math.fsum(float(np.var(values, ddof=1)) / len(values) for values in samples) / len(samples)
    between = max(float(np.var(means, ddof=1)) - noise, 0.0)
    each = math.fsum(map(len, samples)) / len(samples) if drawn is None else drawn
    return 2.0 * between * (1.0 - alike) + 2.0 * within / each

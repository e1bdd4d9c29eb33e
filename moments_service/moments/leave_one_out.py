"""What is expected of a group from history and from the other groups of its batch, and how far that may be wrong."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.moments.base import History, Indices
from moments_service.moments.group_means import GroupMeans

PRIOR_GROUPS = 8.0
"""Groups' worth of the value pooled over all clusters that a cluster's own variances are shrunk towards."""


@dataclass(frozen=True, slots=True)
class TrackedHistory(History):
    """What is remembered of some clusters, [M] rows, and of all of them together.

    level, precision: of the cluster's mean reward by itself, and 1 / its variance; 0 where nothing is known.
    squares, freedom: decayed squared deviations inside groups, and their degrees of freedom.    misses, groups: decayed sum of
    squared errors of predicted group means beyond what sampling and the level's variance explain, and their number.
    centre, spread: what is expected of the cluster's mean from the other clusters, and the variance of that.
    pooled: the four sums over all clusters.    lowest, highest: of all rewards ever seen.
    """

    level: Array
    precision: Array
    squares: Array
    freedom: Array
    misses: Array
    groups: Array
    centre: Array
    spread: Array
    pooled: dict[str, float]
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Priors:
    """What is expected of each group from history and the other groups of its batch; nothing of it hangs on the group. [M] each.

    mean: expected reward of the prompt.    level_variance: of the cluster's mean around that.    between: variance of prompts
    around the cluster's mean.    within: variance of the rewards of one prompt.    known: whether there is anything to go by; the
    rest says nothing where not.
    """

    mean: Array
    level_variance: Array
    between: Array
    within: Array
    known: npt.NDArray[np.bool_]

    @property
    def variance(self) -> Array:
        """Mean squared error of `mean` as a prediction of the prompt's true mean reward."""
        return self.level_variance + self.between


def leave_one_out(history: TrackedHistory, clusters: Indices, batch: GroupMeans) -> Priors:
    """The prior of every group of a batch. clusters: [M]. history: [M] rows.

    The cluster's mean combines three estimates by their precisions: what the other clusters say, the cluster's own history, and
    its other groups of this batch. Before any history half of what prompts differ by is taken to lie between clusters.
    """
    others = _Others(clusters, batch)
    within = shrunk(
        history.squares + others.in_cluster(batch.squares),
        history.freedom + others.in_cluster(batch.freedom),
        _ratio(
            history.pooled["squares"] + others.everywhere(batch.squares),
            history.pooled["freedom"] + others.everywhere(batch.freedom),
        ),
    )
    noise = np.where(batch.scored, 1.0 / np.maximum(batch.size, 1.0), 0.0)
    apart = np.maximum(others.variance(batch.mean) - within * others.mean_everywhere(noise), 0.0)
    pooled = shrunk(np.full(len(apart), history.pooled["misses"]), np.full(len(apart), history.pooled["groups"]), apart)
    between = np.maximum(shrunk(history.misses, history.groups, np.maximum(pooled, 0.0)), 0.0)
    unknown = history.pooled["groups"] <= 0
    centre = others.mean_everywhere(batch.mean) if unknown else history.centre
    spread = 0.5 * apart if unknown else history.spread
    observed = between + within * others.mean_in_cluster(noise)
    seen = spread * history.precision
    now = np.where(observed > 0, spread * others.number / np.where(observed > 0, observed, 1.0), 0.0)
    total = 1.0 + seen + now
    # As deviations from the centre: nothing is lost where all rewards are far from 0.
    moved = seen * (history.level - centre) + now * (others.mean_in_cluster(batch.mean) - centre)
    known = np.full(len(apart), not unknown) | (others.number_everywhere > 0)
    return Priors(centre + moved / total, spread / total, between, within, known)


class _Others:
    """Sums over the groups of a batch that have a reward, without the group itself. [M] each."""

    def __init__(self, clusters: Indices, batch: GroupMeans) -> None:
        _, self._row_of = np.unique(clusters, return_inverse=True)
        self._scored = batch.scored.astype(np.float64)
        self.number = self.in_cluster(np.ones(len(clusters)))
        self.number_everywhere = np.maximum(self._scored.sum() - self._scored, 0.0)

    def in_cluster(self, values: Array) -> Array:
        counted = values * self._scored
        total, size = (np.bincount(self._row_of, weights=sums)[self._row_of] for sums in (counted, np.abs(counted)))
        return _less(total.astype(np.float64), counted, size.astype(np.float64))

    def everywhere(self, values: Array) -> Array:
        counted = values * self._scored
        return _less(counted.sum(), counted, np.abs(counted).sum())

    def mean_in_cluster(self, values: Array) -> Array:
        origin = _origin(values, self._scored)
        return origin + self.in_cluster(values - origin) / np.maximum(self.number, 1.0)

    def mean_everywhere(self, values: Array) -> Array:
        origin = _origin(values, self._scored)
        return origin + self.everywhere(values - origin) / np.maximum(self.number_everywhere, 1.0)

    def variance(self, values: Array) -> Array:
        centred = values - _origin(values, self._scored)
        raw = self.everywhere(centred**2)
        square = _less(raw, self.everywhere(centred) ** 2 / np.maximum(self.number_everywhere, 1.0), raw)
        return np.maximum(square, 0.0) / np.maximum(self.number_everywhere - 1.0, 1.0)


def _less(total: Array | float, own: Array, size: Array | float) -> Array:
    """total - own, 0 where only rounding is left of it. size: sum of magnitudes."""
    rest = total - own
    return np.where(np.abs(rest) <= 1e-12 * size, 0.0, rest)


def _origin(values: Array, scored: Array) -> float:
    return float((values * scored).sum() / max(scored.sum(), 1.0))


def _ratio(total: Array, number: Array) -> Array:
    return np.where(number > 0, total / np.where(number > 0, number, 1.0), 0.0)


def shrunk(total: Array, number: Array, pooled: Array | float) -> Array:
    """The average of a cluster's own `number` observations and PRIOR_GROUPS pooled ones."""
    return (total + PRIOR_GROUPS * pooled) / (number + PRIOR_GROUPS)

"""What a log's rewards vary by: within a prompt, between prompts of a cluster, between clusters; with intervals.

Rewards drift while a policy learns. A log is cut into windows of whole steps, a cluster in a window is a cell, and what is
estimated is the spread inside of windows: drift from window to window is in none of the components.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.moments import Indices
from moments_service.offline.logged_rewards import LoggedRewards
from moments_service.offline.nested_sums import Units, summed, variance_across

RESAMPLES = 100
"""Of the prompts, for the intervals."""
SHUFFLES = 20
PRIOR_GROUPS = 8.0
"""What a cluster's own variances are shrunk to those of all clusters by, in prompts (and in degrees of freedom within)."""
Z = 1.96


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and half the width of its 95 % interval; both NaN where the log cannot tell."""

    value: float
    margin: float

    @property
    def low(self) -> float:
        return self.value - self.margin

    @property
    def high(self) -> float:
        return self.value + self.margin


def interval(drawn: Array) -> Estimate:
    """Mean of some draws of a number, and how far they lie about it; those that are not finite are left out."""
    known = drawn[np.isfinite(drawn)]
    if len(known) < 2:
        return Estimate(float("nan"), float("nan"))
    return Estimate(float(known.mean()), Z * float(known.std(ddof=1)))


@dataclass(frozen=True, slots=True)
class ClusterSpread:
    """The components cluster by cluster, each shrunk to that of all by PRIOR_GROUPS. All arrays [K]."""

    groups: Indices
    mean: Array
    within: Array
    between: Array

    @property
    def rho(self) -> Array:
        """Share of the variance of a cluster's rewards that lies between its prompts; 0 where nothing varies."""
        return share(self.between, self.within)


@dataclass(frozen=True, slots=True)
class Spread:
    """Variance components of a log, in square reward units; by the analysis of variance, so each is unbiased.

    within: of the completions of a prompt.    between: of the prompts' means about their cluster's.    across: of the
    clusters' means about that of all. A negative estimate of the last two is given as it is.
    """

    within: Array
    between: Array
    across: Array
    past: Array
    """Covariance of a prompt's distances from its cell's mean at two visits that follow each other; NaN without any."""

    @property
    def rho(self) -> Array:
        return share(self.between, self.within)

    @property
    def explained(self) -> Array:
        """Share of the variance between all prompts that lies between clusters."""
        return share(self.across, self.between)

    @property
    def persistence(self) -> Array:
        """Share of the variance between a cluster's prompts that a prompt's last visit, known exactly, would tell."""
        between = np.maximum(self.between, 0.0)
        return np.where(between > 0, np.clip(self.past / np.where(between > 0, between, 1.0), 0.0, 1.0), np.nan)


def share(part: Array, rest: Array) -> Array:
    """part / (part + rest), negative ones counted as 0; 0 where both are."""
    part, rest = np.maximum(part, 0.0), np.maximum(rest, 0.0)
    both = part + rest
    return np.asarray(part / np.where(both > 0, both, 1.0))


class VarianceComponents:
    """The components of a log. `of_log` is the point estimate, `resampled` the same of RESAMPLES resamples of the prompts."""

    def __init__(self, log: LoggedRewards, seed: int) -> None:
        self.log = log
        # Squares of rewards far from 0 lose all that differs.
        self._offset = float(np.nanmean(log.rewards))
        self._units = Units.of(log, self._offset)
        self._visits = _visits(log, self._units, self._offset)
        rng = np.random.default_rng(seed)
        self.of_log = self._spread(None)
        prompts = int(log.prompts.max()) + 1
        resampled = [self._spread(rng.multinomial(prompts, np.full(prompts, 1 / prompts))) for _ in range(RESAMPLES)]
        self.resampled = _stacked(resampled)
        self.shuffled_explained = self._shuffled(rng)
        """Share that clusters of the same sizes explain if prompts are put into them at random; mean over shuffles."""

    def estimate(self, of: Callable[[Spread], Array]) -> Estimate:
        """Any number made of the components, with its interval."""
        return Estimate(float(of(self.of_log)), interval(of(self.resampled)).margin)

    def by_cluster(self, resample: np.random.Generator | None = None) -> ClusterSpread:
        """resample: draw the prompts anew before."""
        prompts = int(self.log.prompts.max()) + 1
        weights = None if resample is None else resample.multinomial(prompts, np.full(prompts, 1 / prompts))
        spread, units = self._spread(weights), self._units
        of_all = float(np.nan_to_num(spread.between))
        cells = units.cells(weights)
        clusters = int(self.log.clusters.max()) + 1

        def total(values: Array) -> Array:
            return summed(units.cluster_of_cell, values, clusters)

        freedom, prompts_beyond = total(cells.freedom), total(np.maximum(cells.units - 1.0, 0.0))
        within = (total(cells.squares_within) + PRIOR_GROUPS * spread.within) / (freedom + PRIOR_GROUPS)
        spare = total(cells.spare)
        own = (total(cells.squares_between) - within * prompts_beyond) / np.where(spare > 0, spare, 1.0)
        between = (prompts_beyond * np.where(spare > 0, own, 0.0) + PRIOR_GROUPS * of_all) / (
            prompts_beyond + PRIOR_GROUPS
        )
        count = total(cells.count)
        return ClusterSpread(
            groups=np.bincount(self.log.clusters, minlength=clusters).astype(np.int64),
            mean=self._offset + total(cells.total) / np.where(count > 0, count, 1.0),
            within=within,
            between=np.maximum(between, 0.0),
        )

    def _spread(self, weights: npt.NDArray[np.int64] | None, units: "Units | None" = None) -> Spread:
        units = units or self._units
        cells = units.cells(weights)
        freedom = cells.freedom.sum()
        within = cells.squares_within.sum() / freedom if freedom > 0 else np.nan
        beyond, spare = np.maximum(cells.units - 1.0, 0.0).sum(), cells.spare.sum()
        between = (cells.squares_between.sum() - within * beyond) / spare if spare > 0 else np.nan
        across = variance_across(cells, units.window_of_cell, within, 0.0 if np.isnan(between) else between)
        prompt, product = self._visits
        weight = np.ones(len(prompt)) if weights is None else weights[prompt]
        past = (weight * product).sum() / weight.sum() if weight.sum() > 0 else np.nan
        return Spread(*(np.asarray(value, dtype=np.float64) for value in (within, between, across, past)))

    def _shuffled(self, rng: np.random.Generator) -> float:
        explained = []
        for _ in range(SHUFFLES):
            units = self._units.shuffled(rng)
            explained.append(float(self._spread(None, units).explained))
        return float(np.mean(explained))


def _visits(log: LoggedRewards, units: Units, offset: float) -> tuple[Indices, Array]:
    """Prompt, and product of the distances of its mean from the cell's, of every two visits that follow each other."""
    cells = units.cells(None)
    cell_mean = cells.total / np.where(cells.count > 0, cells.count, 1.0)
    clusters = int(log.clusters.max()) + 1
    keys = units.window_of_cell * clusters + units.cluster_of_cell
    cell = np.searchsorted(keys, log.windows() * clusters + log.clusters)
    distance = np.nanmean(log.rewards, axis=1) - offset - cell_mean[np.minimum(cell, len(keys) - 1)]
    order = np.lexsort((np.arange(len(log.steps)), log.prompts))
    same = np.diff(log.prompts[order]) == 0
    earlier, later = order[:-1][same], order[1:][same]
    return log.prompts[earlier], distance[earlier] * distance[later]


def _stacked(spreads: Sequence[Spread]) -> Spread:
    return Spread(*(np.array([getattr(spread, name) for spread in spreads]) for name in Spread.__slots__))

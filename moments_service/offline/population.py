"""Prompts and rewards drawn at random as a log has them, with the truth that no log holds: each prompt's own mean."""

import itertools
from dataclasses import dataclass

import numpy as np

from moments_service.blend import Array
from moments_service.moments import Indices
from moments_service.offline.logged_rewards import LoggedRewards
from moments_service.offline.variance_components import ClusterSpread

LARGEST_RHO = 0.98
LEAST_CHANCE = 1e-3
"""Of either outcome in a cluster that never had it: a log is no proof."""


@dataclass(frozen=True, slots=True)
class Population:
    """K clusters of prompts. Means of the prompts of cluster k are spread by `between` about `mean`, rewards by `within`.

    outcomes: the two values of a reward that has two, low and high; the chance of the high one is then Beta distributed over the
    prompts, and `within` counts only beside `between`. Else means and rewards are Gaussian.
    """

    share: Array
    """[K] of the groups, sums to 1."""
    mean: Array
    between: Array
    within: Array
    outcomes: tuple[float, float] | None = None
    pool: int = 0
    """Prompts that are visited again and again in turn; 0: each prompt once."""
    persistence: float = 1.0
    """Chance that a prompt's mean is at the next visit what it was at the last; else it is drawn anew."""
    drift: float = 0.0
    """What a step adds to the mean of every prompt."""

    @classmethod
    def beta(cls, mean: float, rho: float) -> "Population":
        """One cluster of rewards 0 and 1, of intra-cluster correlation rho."""
        variance = mean * (1.0 - mean)
        one = np.ones(1)
        return cls(one, mean * one, rho * variance * one, (1.0 - rho) * variance * one, outcomes=(0.0, 1.0))

    def means(self, rng: np.random.Generator, clusters: Indices) -> Array:
        """True means of new prompts. clusters: [M]. Returns [M]."""
        mean, between = self.mean[clusters], self.between[clusters]
        if self.outcomes is None:
            return mean + np.sqrt(between) * rng.standard_normal(len(clusters))
        low, high = self.outcomes
        chance = np.clip((mean - low) / (high - low), LEAST_CHANCE, 1.0 - LEAST_CHANCE)
        both = between + self.within[clusters]
        rho = np.clip(between / np.where(both > 0, both, 1.0), 0.0, LARGEST_RHO)
        strength = 1.0 / np.maximum(rho, 1e-6) - 1.0
        return low + (high - low) * rng.beta(chance * strength, (1.0 - chance) * strength)

    def drifted(self, means: Array, steps: float) -> Array:
        """True means so many steps later, or earlier; a chance stays one."""
        moved = means + steps * self.drift
        return moved if self.outcomes is None else np.clip(moved, *self.outcomes)

    def rewards(self, rng: np.random.Generator, clusters: Indices, means: Array, size: int) -> Array:
        """[M, size] rewards of prompts of these clusters and true means."""
        if self.outcomes is None:
            spread = np.sqrt(self.within[clusters])[:, None]
            return means[:, None] + spread * rng.standard_normal((len(means), size))
        low, high = self.outcomes
        solved = rng.random((len(means), size)) < ((means - low) / (high - low))[:, None]
        return np.where(solved, high, low)


def fitted(log: LoggedRewards, spread: ClusterSpread, persistence: float) -> Population:
    """A population like that of a log. persistence: see `Population`; NaN for prompts that came once."""
    values = np.unique(log.rewards[~np.isnan(log.rewards)])
    prompts = int(log.prompts.max()) + 1
    again = log.prompts_known and prompts < len(log.prompts) and not np.isnan(persistence)
    return Population(
        share=spread.groups / spread.groups.sum(),
        mean=spread.mean,
        between=spread.between,
        within=spread.within,
        outcomes=(float(values[0]), float(values[1])) if len(values) == 2 else None,
        pool=prompts if again else 0,
        persistence=persistence if again else 1.0,
        drift=log.drift(),
    )


class PromptStream:
    """Prompts of a population one batch after another: new ones, or its pool in an order drawn anew for every epoch."""

    def __init__(self, population: Population, rng: np.random.Generator) -> None:
        self._population = population
        self._rng = rng
        self._fresh = itertools.count()
        self._clusters = self._drawn_clusters(population.pool)
        self._means = population.means(rng, self._clusters)
        self._visited = np.zeros(population.pool, dtype=np.bool_)
        self._waiting = np.zeros(0, dtype=np.int64)

    def next(self, groups: int) -> tuple[tuple[str, ...], Indices, Array]:
        """Names, clusters [M] and true means [M] of a batch's prompts."""
        if not self._population.pool:
            clusters = self._drawn_clusters(groups)
            names = tuple(str(number) for number in itertools.islice(self._fresh, groups))
            return names, clusters, self._population.means(self._rng, clusters)
        while len(self._waiting) < groups:
            self._waiting = np.append(self._waiting, self._rng.permutation(self._population.pool))
        chosen, self._waiting = self._waiting[:groups], self._waiting[groups:]
        changed = chosen[self._visited[chosen] & (self._rng.random(groups) >= self._population.persistence)]
        self._means[changed] = self._population.means(self._rng, self._clusters[changed])
        self._visited[chosen] = True
        return tuple(map(str, chosen.tolist())), self._clusters[chosen], self._means[chosen]

    def _drawn_clusters(self, count: int) -> Indices:
        return self._rng.choice(len(self._population.share), size=count, p=self._population.share)

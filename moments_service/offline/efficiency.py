"""How much signal an estimator's advantages hold for the noise they add, measured on prompts whose truth is known.

What pushes a policy the right way is how an advantage goes with the completion's luck, r - p, where p is its prompt's true
mean; what blurs the push is its square. The efficiency of an advantage is eff = (E[A (r - p)])^2 / E[A^2] over prompts and
samples: the squared signal to noise of a completion's push. The best possible is A = r - p itself, and by Cauchy and Schwarz
eff <= E[(r - p)^2], so that eff / E[(r - p)^2], the effective signal, is a share of what a perfect baseline would give. RLOO
has (G - 1) / G of it. Clusters are taken one by one and weighed as is best for each estimator, so that a scale that is one for
a whole cluster does not matter; one that differs from group to group does, and that an estimator weighs hard prompts of a cluster
more on purpose counts against it here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moments_service.blend import Array
from moments_service.config import MomentsConfig
from moments_service.estimators import Estimator, RememberingEstimator, RewardBatch
from moments_service.moments import CommittedRewards, Indices
from moments_service.offline.population import Population, PromptStream
from moments_service.state import MomentsState

ORACLE = "oracle"
"""The advantage r - p, which nobody can have."""


class Alignment:
    """Sums of a stream of advantages of K clusters, from which their efficiency comes."""

    def __init__(self, clusters: int = 1) -> None:
        self._aligned, self._squares, self._luck = np.zeros(clusters), np.zeros(clusters), np.zeros(clusters)
        self._count = 0

    def add(self, values: Array, luck: Array, clusters: Indices | None = None) -> None:
        """values: [M, G] advantages, NaN where there is none.    luck: [M, G] rewards less the true means of their prompts.
        clusters: [M], all the first if None."""
        clusters = np.zeros(len(values), dtype=np.int64) if clusters is None else clusters
        known = ~np.isnan(values)
        values, luck = np.where(known, values, 0.0), np.where(known, luck, 0.0)
        for sums, products in ((self._aligned, values * luck), (self._squares, values**2), (self._luck, luck**2)):
            sums += np.bincount(clusters, weights=products.sum(axis=1), minlength=len(sums))
        self._count += int(known.sum())

    @property
    def efficiency(self) -> float:
        """(E[A (r - p)])^2 / E[A^2] with the best weights of the clusters, in square reward units; 0 for advantages that are all 0."""
        some = self._squares > 0
        return float((self._aligned[some] ** 2 / self._squares[some]).sum()) / self._count if self._count else 0.0

    @property
    def effective_signal(self) -> float:
        """Share of a perfect baseline's efficiency, in [0, 1]."""
        luck = float(self._luck.sum())
        return self.efficiency * self._count / luck if luck > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a population is sampled: batches of `groups` groups of `size`; `before` of them become history before any is measured."""

    groups: int
    size: int
    before: int
    measured: int


def measure(
    configs: Mapping[str, MomentsConfig], population: Population, sampling: Sampling, seed: int
) -> dict[str, Alignment]:
    """Every estimator of `configs` on the same rewards of a population, and the oracle; by their names.

    Every batch becomes history after it was measured, as in a run. Those that keep the same moments, and nothing beside
    them, share one state.
    """
    rng = np.random.default_rng(seed)
    stream = PromptStream(population, rng)
    states = _states(configs, len(population.share))
    found = {name: Alignment(len(population.share)) for name in (*configs, ORACLE)}
    # Halfway through what is measured the population is what it says it is.
    middle = sampling.before + (sampling.measured - 1) / 2
    for step in range(sampling.before + sampling.measured):
        prompts, clusters, means = stream.next(sampling.groups)
        means = population.drifted(means, step - middle)
        rewards = population.rewards(rng, clusters, means, sampling.size)
        luck = rewards - means[:, None]
        if step >= sampling.before:
            found[ORACLE].add(luck, luck, clusters)
        committed = CommittedRewards(clusters, rewards, prompts, policy_version=step + 1)
        for state, estimators in states:
            if step >= sampling.before:
                history = state.history(clusters)
                batch = RewardBatch(rewards, np.ones_like(rewards), prompts, history, clusters=clusters)
                for name, estimator in estimators.items():
                    found[name].add(estimator(batch).values, luck, clusters)
            state.fold(step, committed)
    return found


def _states(configs: Mapping[str, MomentsConfig], clusters: int) -> list[tuple[MomentsState, dict[str, Estimator]]]:
    """States, each with the estimators that read it, by name."""
    shared: dict[tuple[type, str], tuple[MomentsState, dict[str, Estimator]]] = {}
    alone: list[tuple[MomentsState, dict[str, Estimator]]] = []
    for name, config in configs.items():
        state = MomentsState(config, clusters)
        if isinstance(state.estimator, RememberingEstimator):
            alone.append((state, {name: state.estimator}))
            continue
        settings = {key: value for key, value in vars(state.moments).items() if not key.startswith("_")}
        key = type(state.moments), repr(settings)
        shared.setdefault(key, (state, {}))[1][name] = state.estimator
    return [*shared.values(), *alone]

"""The effective signal of estimators at several group sizes, to be expected of prompts like those of a log."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moments_service.blend import Array
from moments_service.config import MomentsConfig
from moments_service.estimators import ESTIMATORS
from moments_service.estimators.naming import configured
from moments_service.offline.efficiency import Sampling, measure
from moments_service.offline.logged_rewards import numbered
from moments_service.offline.population import fitted
from moments_service.offline.replay import estimator_label
from moments_service.offline.variance_components import Estimate, VarianceComponents, interval
from moments_service.seeding import derive_seed

SIZES = (1, 2, 4, 8, 16)
CHAINS = 8
"""Simulated runs, each of prompts resampled from the log; how far they differ is the interval."""
STEPS_BEFORE = 30
COMPLETIONS = 5000
"""That are measured in a chain, in at least LEAST_STEPS and at most MOST_STEPS steps."""
LEAST_STEPS, MOST_STEPS = 10, 60
MOST_COMPLETIONS = 4096
"""A step of a simulated run has as many completions as one of the log, up to this."""
BATCH_MEAN, CLUSTER_MEAN = "batch mean", "cluster mean"
GROUP_ALONE = ("grpo", "rloo")
"""What looks at nothing but the group."""
_WRITTEN = {
    "grpo": "grpo",
    "rloo": "rloo",
    BATCH_MEAN: "reinforce_pp",
    CLUSTER_MEAN: "bv_blend:safe:temperature=1e9",  # trust is 1
    "bv_blend": "bv_blend:safe",
    "bv_blend:eb": "bv_blend:eb",
    "hierarchical": "hierarchical",
}


def contenders(config: MomentsConfig) -> dict[str, MomentsConfig]:
    """Who is compared, by the names in the table: the plain ones, those with history, and what `config` has."""
    plain = MomentsConfig(clusters=config.clusters)
    known = {name: spec for name, spec in _WRITTEN.items() if spec.partition(":")[0] in ESTIMATORS}
    found = {name: configured(plain, spec) for name, spec in known.items()}
    return found if config in found.values() else found | {estimator_label(config): config}


@dataclass(frozen=True, slots=True)
class SignalTable:
    """Effective signal, as a share of a perfect baseline's, of E estimators at S group sizes in each of the chains."""

    estimators: tuple[str, ...]
    sizes: tuple[int, ...]
    chains: Array
    """[E, S, CHAINS], in [0, 1]."""

    def of(self, estimator: str, size: int) -> Estimate:
        return interval(self._chains(estimator, size))

    def gain(self, estimator: str, other: str, size: int) -> Estimate:
        """How much more `estimator` has than `other`, as a share of that; compared chain by chain, on the same rewards."""
        than = self._chains(other, size)
        return interval(self._chains(estimator, size) / np.where(than > 0, than, np.nan) - 1.0)

    def best(self, size: int, among: Sequence[str] | None = None) -> str:
        """Who has most of it at a group size."""
        names = self.estimators if among is None else among
        return max(names, key=lambda name: self.of(name, size).value)

    def _chains(self, estimator: str, size: int) -> Array:
        return np.asarray(self.chains[self.estimators.index(estimator), self.sizes.index(size)])


def signal_table(
    components: VarianceComponents, config: MomentsConfig, sizes: Sequence[int], chains: int, seed: int
) -> SignalTable:
    """Measure every contender on populations fitted to resamples of a log, at as many completions a step as it has."""
    log, rng = components.log, np.random.default_rng(derive_seed(seed, "populations"))
    configs = contenders(config)
    completions = np.bincount(numbered(log.steps), weights=log.sizes)
    a_step = int(np.clip(np.median(completions), max(sizes), MOST_COMPLETIONS))
    measured = int(np.clip(COMPLETIONS // a_step, LEAST_STEPS, MOST_STEPS))
    persistence = float(components.of_log.persistence)
    found = np.zeros((len(configs), len(sizes), chains))
    for chain in range(chains):
        population = fitted(log, components.by_cluster(rng), persistence)
        # No simulated run drifts further than the log did.
        lasts = min(len(completions) / (STEPS_BEFORE + measured), 1.0)
        population = replace(population, drift=lasts * population.drift)
        for place, size in enumerate(sizes):
            sampling = Sampling(a_step // size, size, STEPS_BEFORE, measured)
            alignments = measure(configs, population, sampling, derive_seed(seed, "chain", chain, size))
            found[:, place, chain] = [alignments[name].effective_signal for name in configs]
    return SignalTable(tuple(configs), tuple(sizes), found)

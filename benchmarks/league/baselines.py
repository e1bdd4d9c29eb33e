"""What a job names: clusters of prompts, and estimators, those that only a league can have among them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.league.tasks import Indices, Task
from moments_service.blend import Array, between_means_variance, blended_baseline, blended_variance, group_moments
from moments_service.config import MomentsConfig
from moments_service.estimators import Advantages, RewardBatch
from moments_service.estimators.base import advantages
from moments_service.estimators.naming import configured
from moments_service.messages.groups import PolicyMove
from moments_service.moments import CommittedRewards, TrackedMeans
from moments_service.seeding import derive_seed
from moments_service.state import MomentsState

SURE = 0.01
"""Success probabilities are kept so far from 0 and 1 where they divide."""
LEAST = 1e-8

Control = Callable[[RewardBatch, Array], Advantages]
"""From a batch and [M] exact success probabilities of its prompts under the policy that sampled it."""


def clusters_of(task: Task, name: str, seed: int) -> Indices:
    """Cluster of every training prompt, [N].

    name: `embedding:K`, `source`, `difficulty`, `prompt` (each by itself), `one`, or `shuffled:` before any of them, which
    deals the same clusters out among the prompts at random.
    """
    kind, _, rest = name.partition(":")
    if kind == "shuffled":
        return np.random.default_rng(derive_seed(seed, "shuffled")).permutation(clusters_of(task, rest, seed))
    prompts = task.train.prompts
    if kind == "embedding":
        if (key := f"{rest}:{seed}") not in task.clusters:
            raise ValueError(f"the task holds no {rest} clusters for seed {seed}; prepare it for this job")
        return task.clusters[key]
    if kind == "one":
        return np.zeros(len(prompts), dtype=np.int64)
    labels = {"source": "source", "difficulty": "difficulty", "prompt": "prompt_id"}
    if kind not in labels:
        raise ValueError(f"clusters {name!r}: known are embedding:K, source, difficulty, prompt, one and shuffled:…")
    return np.unique([getattr(prompt, labels[kind]) for prompt in prompts], return_inverse=True)[1]


def kinship_of(task: Task, name: str, seed: int) -> Array | None:
    """Of the clusters that `clusters_of` gives; None where they are no clusters of embeddings."""
    kind, _, rest = name.partition(":")
    return task.kinship.get(f"{rest}:{seed}") if kind == "embedding" else None


def estimator_of(config: MomentsConfig, spec: str) -> tuple[MomentsConfig, Control | None]:
    """The configuration that a spec names, and the control that takes the place of its estimator, if it names one.

    spec: an estimator as `moments_service.estimators.naming` reads it, or one of CONTROLS; `fixed:W` is the safe blend with
    trust W in every history that there is, `unscaled:SPEC` another estimator's baseline without its scale.
    """
    name, _, rest = spec.partition(":")
    if name in CONTROLS and not rest:
        return config, CONTROLS[name]
    if name == "fixed":
        weight = float(rest)
        return config, lambda batch, truth: fixed(batch, weight)
    if name == "unscaled":
        config = configured(config, rest)
        estimator = config.estimator.create()
        return config, lambda batch, truth: unscaled(batch, estimator(batch))
    return configured(config, spec), None


class Contestant:
    """An estimator, or a control, with a history of its own."""

    def __init__(self, config: MomentsConfig, spec: str, clusters: int, kinship: Array | None = None) -> None:
        """kinship: [K, K] of the clusters, where it is known."""
        self.config, self._control = estimator_of(config, spec)
        self.state = MomentsState(self.config, clusters)
        if isinstance(self.state.moments, TrackedMeans):
            self.state.moments.relate(kinship)

    @property
    def needs_truth(self) -> bool:
        return self._control is not None

    @property
    def needs_move(self) -> bool:
        return self._control is None and self.config.estimator.fades_by_move

    def estimate(self, batch: RewardBatch, truth: Array | None) -> Advantages:
        """Advantages from the history before the batch. truth: [M] exact mean rewards of its prompts, where it is needed."""
        assert batch.clusters is not None
        batch = replace(batch, history=self.state.history(batch.clusters))
        if self._control is None:
            return self.state.estimate(batch)
        assert truth is not None
        return self._control(batch, truth)

    def fold(self, step: int, batch: RewardBatch, move: PolicyMove | None) -> None:
        """The batch is history from now on, under the version that came of its step."""
        assert batch.clusters is not None
        committed = CommittedRewards(
            clusters=batch.clusters,
            rewards=batch.rewards,
            prompts=batch.prompts,
            policy_version=step + 1,
            move=move,
            lengths=batch.lengths,
            born=batch.born,
            surprisals=batch.surprisals,
        )
        self.state.fold(step, committed)


def oracle(batch: RewardBatch, truth: Array) -> Advantages:
    """A = r - p: the best baseline that knows nothing of the completion but its prompt."""
    return advantages(batch.rewards, truth, np.ones_like(truth), 0.0)


def oracle_scaled(batch: RewardBatch, truth: Array) -> Advantages:
    """A = (r - p) / sqrt(p (1 - p))."""
    kept = truth.clip(SURE, 1.0 - SURE)
    return advantages(batch.rewards, truth, np.sqrt(kept * (1.0 - kept)), 0.0)


def batch_mean(batch: RewardBatch, truth: Array) -> Advantages:
    """A = r - mean of all other rewards of the batch; `baseline` is the mean of all."""
    valid = ~np.isnan(batch.rewards)
    count, total = valid.sum(), batch.rewards[valid].sum()
    others = (total - batch.rewards) / max(count - 1, 1)
    flat = np.full(len(batch.rewards), total / max(count, 1))
    return Advantages(batch.rewards - others, flat, np.ones_like(flat), np.zeros_like(flat))


def cluster_mean(batch: RewardBatch, truth: Array) -> Advantages:
    """A = r - mean of the cluster's history; where there is none, the mean of the others of the group."""
    history = batch.history
    mean, _, count = group_moments(batch.rewards)
    others = (mean[:, None] * count[:, None] - batch.rewards) / np.maximum(count - 1.0, 1.0)[:, None]
    others = np.where(count[:, None] > 1, others, batch.rewards)
    values = batch.rewards - np.where(history.seen[:, None], history.mean[:, None], others)
    baseline = np.where(history.seen, history.mean, mean)
    return Advantages(values, baseline, np.ones_like(mean), history.seen.astype(np.float64))


def fixed(batch: RewardBatch, weight: float) -> Advantages:
    """The safe blend, clipped as by default, with one trust in all history: how much its rule for trust is worth."""
    history = batch.history
    mean, variance, _ = group_moments(batch.rewards)
    trust = np.where(history.seen, weight, 0.0)
    blended = blended_variance(trust, history.variance, variance)
    scale = np.sqrt(blended + between_means_variance(trust, history.mean, mean))
    found = advantages(batch.rewards, blended_baseline(trust, history.mean, mean), scale, LEAST, trust)
    return Advantages(found.values.clip(-5.0, 5.0), found.baseline, found.scale, trust)


def unscaled(batch: RewardBatch, found: Advantages) -> Advantages:
    """A = r - the baseline of another estimator."""
    return advantages(batch.rewards, found.baseline, np.ones_like(found.baseline), 0.0, found.weight)


CONTROLS: dict[str, Control] = {
    "oracle": oracle,
    "oracle_scaled": oracle_scaled,
    "batch_mean": batch_mean,
    "cluster_mean": cluster_mean,
}

"""Any log of rewards through any estimator, without a run: what would the advantages have been?"""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moments_service.clusters import PromptSet, fit_clusters
from moments_service.clusters.blur import blur
from moments_service.clusters.encoder import PromptEncoder
from moments_service.config import BlendConfig, MomentsConfig
from moments_service.effective_signal import effective_signal
from moments_service.estimators import Advantages, RewardBatch
from moments_service.estimators.grpo import grpo
from moments_service.messages.table import padded
from moments_service.moments import CommittedRewards
from moments_service.offline.logs import LogError, LoggedGroup
from moments_service.progress import Progress, silent
from moments_service.seeding import derive_seed
from moments_service.state import MomentsState

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ReplaySummary:
    """What an estimator made of a log."""

    groups: int = 0
    with_signal: int = 0
    """Groups with any advantage that is not 0."""
    rescued: int = 0
    """Of those the ones that have none under GRPO."""
    effective: list[float] = field(default_factory=list)
    """Effective signal of each batch."""
    magnitudes: list[float] = field(default_factory=list)

    @property
    def signal_ratio(self) -> float:
        return self.with_signal / self.groups if self.groups else math.nan

    @property
    def mean_magnitude(self) -> float:
        return math.fsum(self.magnitudes) / len(self.magnitudes) if self.magnitudes else math.nan

    @property
    def effective_signal(self) -> float:
        """Mean over the batches: share of a perfect baseline's signal to noise."""
        mean = math.fsum(self.effective) / len(self.effective) if self.effective else math.nan
        return min(max(mean, 0.0), 1.0)

    def add(self, batch: RewardBatch, own: Advantages, counterfactual: Advantages) -> None:
        signal, other = own.carries_signal(), counterfactual.carries_signal()
        self.groups += len(signal)
        self.effective.append(effective_signal(own.without_cluster_scale(), batch.rewards, batch.history, own.prior))
        self.with_signal += int(signal.sum())
        self.rescued += int((signal & ~other).sum())
        self.magnitudes += np.abs(own.values[~np.isnan(own.values)]).tolist()


def with_clusters(
    groups: Sequence[LoggedGroup], config: MomentsConfig, seed: int = 0, progress: Progress = silent
) -> list[LoggedGroup]:
    """The groups, each with a cluster. Where the log gives prompts, clusters are made of them as in a run.

    progress: of how many embedded prompts. Raises LogError for a log that gives both, or none that the clusters are made by.
    """
    by_prompt = [group for group in groups if "prompt" in group.model_fields_set]
    if not by_prompt:
        return list(groups)
    if len(by_prompt) < len(groups):
        raise LogError("some lines give a prompt and others a cluster; give the same in all of them")
    if config.clusters.by != "embedding":
        raise LogError(f"moments.clusters.by: a log with prompts has no {config.clusters.by}; give clusters instead")
    texts = tuple(sorted({group.prompt for group in groups}))
    unknown = ("",) * len(texts)
    embeddings = PromptEncoder(config.clusters).encode(texts, progress)
    for sentence in blur(("of the log",) * len(texts), texts, embeddings):
        log.warning("%s", sentence)
    prompts = PromptSet(texts, unknown, unknown, embeddings)
    assigned = fit_clusters(config.clusters, prompts, derive_seed(seed, "codebook")).assign_prompts(prompts)
    clusters = dict(zip(texts, assigned.tolist(), strict=True))
    return [group.model_copy(update={"cluster": clusters[group.prompt]}) for group in groups]


def replay(groups: Sequence[LoggedGroup], config: MomentsConfig, summary: ReplaySummary) -> Iterator[dict[str, Any]]:
    """Run a log through the estimator of `config`; one row a group, in the order of the log.

    Groups of one step are a batch: advantages come from the state before it, then it becomes history. Groups without any
    reward are in no batch, as in training.
    """
    numbers = {cluster: row for row, cluster in enumerate(sorted({group.cluster for group in groups}))}
    state = MomentsState(config, len(numbers))
    version = 0
    for step, members in itertools.groupby(groups, key=lambda group: group.step):
        everyone = list(members)
        batch = [group for group in everyone if group.scored]
        results: dict[int, tuple[Advantages, int]] = {}
        if batch:
            clusters = np.array([numbers[group.cluster] for group in batch], dtype=np.int64)
            width = max(len(group.rewards) for group in batch)
            rewards = RewardBatch(
                rewards=padded([group.rewards for group in batch], width, np.nan),
                lengths=padded([group.lengths or (1,) * len(group.rewards) for group in batch], width, 0.0),
                prompts=tuple(group.prompt or f"cluster {group.cluster}" for group in batch),
                history=state.history(clusters),
                clusters=clusters,
                sizes=np.array([len(group.rewards) for group in batch], dtype=np.int64),
            )
            own = state.estimate(rewards)
            summary.add(rewards, own, grpo(rewards))
            results = {id(group): (own, row) for row, group in enumerate(batch)}
            version += 1
            state.fold(step, CommittedRewards(clusters, rewards.rewards, rewards.prompts, version))
        for group in everyone:
            yield _row(group, config, results.get(id(group)))


def _row(group: LoggedGroup, config: MomentsConfig, result: tuple[Advantages, int] | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "step": group.step,
        "group": group.group,
        "estimator": estimator_label(config),
        "cluster": group.cluster,
        "advantages": [None] * len(group.rewards),
        "baseline": None,
        "scale": None,
        "weight": None,
    }
    if result is not None:
        own, place = result
        values = own.values[place, : len(group.rewards)].tolist()
        row["advantages"] = [_finite(value) for value in values]
        row |= {
            name: _finite(array[place])
            for name, array in (("baseline", own.baseline), ("scale", own.scale), ("weight", own.weight))
        }
    return row


def _finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def estimator_label(config: MomentsConfig) -> str:
    """The estimator's name; with its variant where it is not the preset."""
    estimator = config.estimator
    if isinstance(estimator, BlendConfig) and estimator.variant != "safe":
        return f"bv_blend:{estimator.variant}"
    return estimator.kind

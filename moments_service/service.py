"""The moments service: takes scored groups in, hands out batches of blended advantages, remembers what was trained on.

Plain async Python in one event loop; `actor.py` is the Ray shell around it. Everything that may be sent twice is
recognised by its id: `submit` by group, `next_batch` and `commit` by step.
"""

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from moments_service.buffer import GroupBuffer, ReadyGroup
from moments_service.codebook import Codebook, fit_codebook
from moments_service.config import MomentsConfig
from moments_service.estimators import create_estimator
from moments_service.estimators.grpo import grpo
from moments_service.groups import Batch, BlendedGroup, GroupStatus, ScoredGroup, Transcript
from moments_service.ledger import Ledger, LedgerCommit
from moments_service.moments import ClusterMoments, create_moments
from moments_service.seeding import derive_seed
from moments_service.signal import reward_metrics, signal_metrics

logger = logging.getLogger(__name__)

CODEBOOK_FILE = "codebook.safetensors"
MOMENTS_FILE = "moments.safetensors"
LEDGER_FILE = "ledger.sqlite"


class MomentsService:
    """Owner of the ledger, the codebook and the moments of one run.

    directory: where the ledger and the codebook live.    incarnation: which start of the run this is.
    snapshot: directory written by `snapshot`, to go on from; what this incarnation's ledger holds is replayed on top.
    """

    def __init__(
        self, config: MomentsConfig, directory: Path, seed: int, incarnation: int = 0, snapshot: Path | None = None
    ) -> None:
        self._config = config
        self._directory = directory
        self._seed = seed
        self._estimator = create_estimator(config)
        self._buffer = GroupBuffer()
        self._last_step = -1
        self._drawn: Batch | None = None
        # Groups that nobody will train on; they wait here for the next commit to enter history.
        self._closed: list[ReadyGroup] = []
        # Ids between their acknowledgement and their commit; older ones are recognised by the ledger.
        self._open: set[str] = set()
        self._counts = {"groups": 0, "completions": 0, "errors": 0, "lost": 0, "trained": 0}
        directory.mkdir(parents=True, exist_ok=True)
        self._ledger = Ledger(directory / LEDGER_FILE, incarnation)
        self._codebook: Codebook | None = None
        self._moments: ClusterMoments | None = None
        if (directory / CODEBOOK_FILE).exists():
            self._use(Codebook.load(directory / CODEBOOK_FILE))
        if snapshot is not None:
            self._restore(snapshot)
        self._replay()

    async def fit_clusters(self, embeddings: np.ndarray) -> int:
        """Fit the codebook on the prompt set, once per run; later calls return what there is.

        embeddings: [N, d] float32, unit length. Returns the number of clusters.
        """
        if self._codebook is None:
            seed = derive_seed(self._seed, "codebook")
            codebook = await asyncio.to_thread(fit_codebook, embeddings, self._config.clusters.count, seed)
            partial = self._directory / f"{CODEBOOK_FILE}.partial"
            codebook.save(partial)
            partial.rename(self._directory / CODEBOOK_FILE)
            self._use(codebook)
        return len(self._fitted())

    async def submit(self, group: ScoredGroup, payload: Any = None, transcript: Transcript | None = None) -> None:
        """Take one scored group. Returns when its header is on the disk; a group sent twice counts once.

        payload: an opaque handle that comes back in the batch; None for a group that nobody can train on.
        """
        codebook = self._fitted()
        if self._ledger.holds(group.group_id):
            return
        embedding = group.embedding
        if embedding is None:
            raise ValueError(f"group {group.group_id} carries no embedding, and clusters are made of embeddings")
        if group.status is GroupStatus.SCORED and payload is None:
            group = replace(group, status=GroupStatus.LOST)
        # The cluster is all that the embedding was for; batches travel without it.
        group = replace(group, embedding=None)
        ready = ReadyGroup(group, int(codebook.assign(embedding[None])[0]), payload)
        await self._ledger.append(group, ready.cluster, transcript)
        if group.group_id in self._open:
            return  # its twin was written in the same moment
        self._open.add(group.group_id)
        self._count(group)
        if group.status is GroupStatus.SCORED:
            await self._buffer.put(ready)
        else:
            self._closed.append(ready)

    async def mark_lost(self, group_ids: tuple[str, ...]) -> tuple[str, ...]:
        """Close groups whose payload died before a batch was made of them. They still count in history.

        Ids that were never submitted or are drawn already are left alone. Returns the ids that were closed.
        """
        lost = self._buffer.remove(group_ids)
        closed = tuple(ready.header.group_id for ready in lost)
        if lost:
            await self._ledger.mark_lost(closed)
            self._counts["lost"] += len(lost)
            self._closed.extend(lost)
        return closed

    async def next_batch(self, step: int, groups: int) -> Batch:
        """The next `groups` groups in feed order, with advantages from the state before them.

        Waits until there are so many. Asked again for the same step, it returns the same batch.
        """
        if self._drawn is not None and self._drawn.step == step:
            return self._drawn
        if self._drawn is not None:
            raise RuntimeError(f"step {step} asked for a batch while step {self._drawn.step} is not committed")
        if step <= self._last_step:
            raise RuntimeError(f"step {step} is committed already; the last one is {self._last_step}")
        entries = await self._buffer.take(groups)
        self._drawn = self._blend(step, entries)
        return self._drawn

    async def withdraw(self, step: int, lost: tuple[str, ...]) -> None:
        """Take the batch of `step` back because payloads in it are lost: those close, the others wait again."""
        if self._drawn is None or self._drawn.step != step:
            return
        batch, self._drawn = self._drawn, None
        for blended in batch.groups:
            await self._buffer.put(ReadyGroup(blended.group, blended.cluster, blended.payload))
        await self.mark_lost(lost)

    async def commit(self, step: int, policy_version: int) -> None:
        """Fold the batch of `step` into the moments, after its policy step; a commit sent twice counts once.

        Groups that were scored but closed without training are folded in with it: history has no survivorship.
        """
        if step <= self._last_step:
            return
        if self._drawn is None or self._drawn.step != step:
            raise RuntimeError(f"step {step} cannot be committed: no batch was made for it")
        batch, self._drawn = self._drawn, None
        closed, self._closed = self._closed, []
        folded = sorted(
            [(blended.group, blended.cluster) for blended in batch.groups]
            + [(ready.header, ready.cluster) for ready in closed],
            key=lambda entry: (entry[0].sequence, entry[0].group_id),
        )
        commit = LedgerCommit(step, policy_version, tuple(group.group_id for group, _ in folded))
        await self._ledger.append_commit(commit, batch)
        self._fold([cluster for _, cluster in folded], [group.rewards for group, _ in folded], policy_version)
        self._open.difference_update(commit.group_ids)
        self._counts["trained"] += len(batch.groups)
        self._last_step = step

    async def stats(self) -> dict[str, Any]:
        """Counts, queue depth and the moments of every cluster, for people and dashboards."""
        stats: dict[str, Any] = {"counts": dict(self._counts), "ready": len(self._buffer), "last_step": self._last_step}
        if self._moments is not None:
            every = np.arange(len(self._fitted()))
            history = self._moments.history(every)
            weight = self._estimator(np.full((len(every), 1), np.nan), history).weight
            stats["clusters"] = {
                "mean": history.mean.tolist(),
                "variance": history.variance.tolist(),
                "mass": history.mass.tolist(),
                "weight": weight.tolist(),
                "seen": history.seen.tolist(),
            }
        return stats

    async def assign(self, embeddings: np.ndarray) -> np.ndarray:
        """Cluster of each embedding, [N] int64. embeddings: [N, d] float32, unit length."""
        return self._fitted().assign(embeddings)

    async def snapshot(self, directory: Path) -> None:
        """Write moments and codebook into an existing directory. Only between commit and the next batch."""
        if self._drawn is not None:
            raise RuntimeError(
                f"no snapshot while the batch of step {self._drawn.step} is neither trained on nor committed"
            )
        assert self._moments is not None
        codebook = self._fitted()
        codebook.save(directory / CODEBOOK_FILE)
        about = {
            "codebook": codebook.fingerprint,
            "last_step": str(self._last_step),
            "counts": json.dumps(self._counts),
        }
        save_file(self._moments.state(), directory / MOMENTS_FILE, metadata=about)

    async def close(self) -> None:
        """Finish pending writes and close the ledger."""
        await self._ledger.close()

    def _fitted(self) -> Codebook:
        if self._codebook is None:
            raise RuntimeError("the moments service has no clusters yet: call fit_clusters first")
        return self._codebook

    def _use(self, codebook: Codebook) -> None:
        self._codebook = codebook
        self._moments = create_moments(self._config.blend, len(codebook))

    def _restore(self, snapshot: Path) -> None:
        self._use(Codebook.load(snapshot / CODEBOOK_FILE))
        assert self._moments is not None
        self._moments.load_state(load_file(snapshot / MOMENTS_FILE))
        with safe_open(snapshot / MOMENTS_FILE, framework="numpy") as file:
            about = file.metadata()
        self._last_step = int(about["last_step"])
        self._counts = json.loads(about["counts"])
        if about["codebook"] != self._fitted().fingerprint:
            raise ValueError(f"snapshot {snapshot} is mixed up: its moments belong to codebook {about['codebook']}")

    def _replay(self) -> None:
        """Fold again what this incarnation committed before the service died."""
        for commit, groups in self._ledger.commits():
            self._fold([group.cluster for group in groups], [group.rewards for group in groups], commit.policy_version)
            self._last_step = commit.step

    def _fold(self, clusters: list[int], rewards: list[tuple[float | None, ...]], policy_version: int) -> None:
        assert self._moments is not None
        self._moments.fold(np.asarray(clusters, dtype=np.int64), padded_rewards(rewards), policy_version)

    def _count(self, group: ScoredGroup) -> None:
        self._counts["groups"] += 1
        self._counts["completions"] += len(group.rewards)
        self._counts["errors"] += sum(error is not None for error in group.errors)
        self._counts["lost"] += group.status is GroupStatus.LOST

    def _blend(self, step: int, entries: list[ReadyGroup]) -> Batch:
        assert self._moments is not None
        headers = [entry.header for entry in entries]
        rewards = padded_rewards([group.rewards for group in headers])
        clusters = np.array([entry.cluster for entry in entries])
        history = self._moments.history(clusters)
        own = self._estimator(rewards, history)
        metrics = reward_metrics(headers, rewards)
        metrics |= signal_metrics(own, grpo(rewards, history), self._config.blend.max_advantage)
        metrics["reward/errors"] = self._error_share(headers)
        blended = tuple(
            BlendedGroup(
                group=entry.header,
                payload=entry.payload,
                cluster=entry.cluster,
                advantages=tuple(
                    None if reward is None else float(own.values[row, i])
                    for i, reward in enumerate(entry.header.rewards)
                ),
                baseline=float(own.baseline[row]),
                scale=float(own.scale[row]),
                weight=float(own.weight[row]),
            )
            for row, entry in enumerate(entries)
        )
        return Batch(step=step, groups=blended, metrics=metrics)

    def _error_share(self, headers: list[ScoredGroup]) -> float:
        """Share of completions without a reward since the last batch, closed groups included."""
        errors = [error for group in headers + [closed.header for closed in self._closed] for error in group.errors]
        share = sum(error is not None for error in errors) / len(errors)
        if share > self._config.error_alarm:
            examples = sorted({error for error in errors if error is not None})[:3]
            logger.warning("%.0f%% of the completions have no reward: %s", 100 * share, "; ".join(examples))
        return share


def padded_rewards(rewards: list[tuple[float | None, ...]]) -> np.ndarray:
    """Ragged rewards as [M, G] float64, NaN where there is none."""
    width = max(len(row) for row in rewards)
    padded = np.full((len(rewards), width), np.nan)
    for i, row in enumerate(rewards):
        padded[i, : len(row)] = [np.nan if reward is None else reward for reward in row]
    return padded

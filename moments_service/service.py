"""The moments service: takes scored groups in, hands out batches of blended advantages, remembers what was trained on.

Plain async Python in one event loop; `actor.py` is the Ray shell around it. Everything that may be sent twice is
recognised by its id: `submit` by group, `next_batch` and `commit` by step.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from moments_service.buffer import GroupBuffer, ReadyGroup
from moments_service.clusters import (
    ClusterChange,
    Clusters,
    PromptSet,
    fit_clusters,
    load_clusters,
    refuse_other_clusters,
)
from moments_service.clusters.adapting import adapted
from moments_service.clusters.versions import ClusterRecord, ClusterVersions
from moments_service.config import MomentsConfig
from moments_service.estimators import RewardBatch
from moments_service.estimators.grpo import grpo
from moments_service.groups import Batch, BlendedGroup, GroupStatus, PolicyMove, ScoredGroup, Transcript
from moments_service.ledger import Ledger, LedgerCommit, LedgerGroup
from moments_service.moments import CommittedRewards
from moments_service.portable import CODEBOOK_FILE, WarmStart
from moments_service.seeding import derive_seed
from moments_service.signal import reward_metrics, signal_metrics
from moments_service.state import Counts, MomentsState

logger = logging.getLogger(__name__)

LEDGER_FILE = "ledger.sqlite"


class MomentsService:
    """Owner of the ledger, the clusters and the moments of one run.

    directory: where the ledger and every version of the clusters live.    incarnation: which start of the run this is.
    snapshot: directory written by `snapshot`, to go on from; what this incarnation's ledger holds is replayed on top.
    """

    def __init__(
        self, config: MomentsConfig, directory: Path, seed: int, incarnation: int = 0, snapshot: Path | None = None
    ) -> None:
        self._config = config
        self._directory = directory
        self._seed = seed
        self._buffer = GroupBuffer()
        self._drawn: Batch | None = None
        # Groups that nobody will train on; they wait here for the next commit to enter history.
        self._closed: list[ReadyGroup] = []
        # Ids between their acknowledgement and their commit; older ones are recognised by the ledger.
        self._open: set[str] = set()
        self._committing = asyncio.Lock()
        self._counts = Counts()
        directory.mkdir(parents=True, exist_ok=True)
        self._ledger = Ledger(directory / LEDGER_FILE, incarnation)
        self._versions = ClusterVersions(directory, incarnation)
        self._clusters: Clusters | None = None
        self._prompts: PromptSet | None = None
        self._state: MomentsState | None = None
        if snapshot is not None:
            self._restore(snapshot)
        self._replay()

    async def fit_clusters(self, prompts: PromptSet | np.ndarray) -> int:
        """Make the clusters of the prompt set; where there are some, grow them for prompts unlike any seen before.

        prompts: or bare embeddings, [N, d] float32, unit length. Returns the number of clusters.
        Raises ValueError if the clusters that there are were made by another encoder or of something else.
        """
        prompts = prompts if isinstance(prompts, PromptSet) else PromptSet.of_embeddings(prompts)
        if self._clusters is None:
            warm = WarmStart.of_run(self._directory)
            seed = derive_seed(self._seed, "codebook")
            first = (
                warm.clusters if warm else await asyncio.to_thread(fit_clusters, self._config.clusters, prompts, seed)
            )
            refuse_other_clusters(first, self._config.clusters.by, prompts.encoder)
            self._change(ClusterChange(first))
        refuse_other_clusters(self._fitted(), self._config.clusters.by, prompts.encoder)
        self._change(await asyncio.to_thread(self._fitted().grown, prompts))
        self._prompts = prompts
        self._fitted().remember(prompts)
        return len(self._fitted())

    async def adapt_clusters(self) -> ClusterChange | None:
        """Split clusters of unlike prompts and retire dead ones, see `clusters/adapting.py`. Returns the change, if any.

        Only between commit and the next batch. The change is on the disk before it takes effect.
        """
        if self._drawn is not None:
            raise RuntimeError(f"clusters cannot change while the batch of step {self._drawn.step} is not committed")
        if self._prompts is None:
            raise RuntimeError("the moments service knows no prompts yet: call fit_clusters first")
        change = adapted(self._fitted(), self._fitted_state().moments, self._prompts)
        self._change(change)
        return change

    async def submit(self, group: ScoredGroup, payload: Any = None, transcript: Transcript | None = None) -> None:
        """Take one scored group. Returns when its header is on the disk; a group sent twice counts once.

        payload: an opaque handle that comes back in the batch; None for a group that nobody can train on.
        """
        clusters = self._fitted()
        if self._ledger.holds(group.group_id):
            return
        cluster = int(clusters.assign([group])[0])
        if group.status is GroupStatus.SCORED and payload is None:
            group = replace(group, status=GroupStatus.LOST)
        # The cluster is all that the embedding was for; batches travel without it.
        group = replace(group, embedding=None)
        ready = ReadyGroup(group, cluster, payload)
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
            self._counts.lost += len(lost)
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
        if step <= self._fitted_state().last_step:
            raise RuntimeError(f"step {step} is committed already; the last one is {self._fitted_state().last_step}")
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

    async def commit(self, step: int, policy_version: int, move: PolicyMove | None = None) -> None:
        """Fold the batch of `step` into the moments, after its policy step; a commit sent twice counts once.

        move: how far the step moved the policy, where that is measured.
        Groups that were scored but closed without training are folded in with it: history has no survivorship.
        """
        async with self._committing:
            state = self._fitted_state()
            if step <= state.last_step:
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
            commit = LedgerCommit(step, policy_version, move, tuple(group.group_id for group, _ in folded))
            await self._ledger.append_commit(commit, batch)
            state.fold(
                step,
                CommittedRewards(
                    clusters=np.array([cluster for _, cluster in folded]),
                    rewards=padded([group.rewards for group, _ in folded]),
                    prompts=tuple(group.prompt_id for group, _ in folded),
                    policy_version=policy_version,
                    move=move,
                ),
            )
            self._open.difference_update(commit.group_ids)
            self._counts.trained += len(batch.groups)

    async def stats(self) -> dict[str, Any]:
        """Counts, queue depth and the moments of every cluster, for people and dashboards."""
        stats: dict[str, Any] = {"counts": asdict(self._counts), "ready": len(self._buffer), "last_step": -1}
        if self._state is not None:
            every = np.arange(len(self._state.moments))
            history = self._state.moments.history(every)
            nothing = np.full((len(every), 1), np.nan)
            unknown = RewardBatch(nothing, np.zeros_like(nothing), ("",) * len(every), history)
            stats["last_step"] = self._state.last_step
            stats["clusters"] = {
                "mean": history.mean.tolist(),
                "variance": history.variance.tolist(),
                "mass": history.mass.tolist(),
                "weight": self._state.estimate(unknown).weight.tolist(),
                "seen": history.seen.tolist(),
            }
        return stats

    async def assign(self, prompts: PromptSet | np.ndarray) -> np.ndarray:
        """Cluster of each prompt, [N] int64. prompts: or bare embeddings, [N, d] float32, unit length."""
        return self._fitted().assign_prompts(
            prompts if isinstance(prompts, PromptSet) else PromptSet.of_embeddings(prompts)
        )

    async def snapshot(self, directory: Path) -> None:
        """Write moments and clusters into an existing directory. Only between commit and the next batch."""
        if self._drawn is not None:
            raise RuntimeError(
                f"no snapshot while the batch of step {self._drawn.step} is neither trained on nor committed"
            )
        clusters = self._fitted()
        clusters.save(directory / CODEBOOK_FILE)
        self._fitted_state().save(directory, clusters.fingerprint, self._counts)

    async def close(self) -> None:
        """Finish pending writes and close the ledger."""
        await self._ledger.close()

    def _fitted(self) -> Clusters:
        if self._clusters is None:
            raise RuntimeError("the moments service has no clusters yet: call fit_clusters first")
        return self._clusters

    def _fitted_state(self) -> MomentsState:
        self._fitted()
        assert self._state is not None
        return self._state

    def _change(self, change: ClusterChange | None) -> None:
        """Go over to another version of the clusters, from the next commit on. It is on the disk before it counts."""
        if change is not None:
            last_step = -1 if self._state is None else self._state.last_step
            self._take(self._versions.record(change.clusters, last_step, change.transfers), change.clusters)

    def _take(self, record: ClusterRecord, clusters: Clusters) -> None:
        if self._state is None:
            self._state = MomentsState(self._config, len(clusters))
            if warm := WarmStart.of_run(self._directory):
                warm.fill(self._state.moments)
        self._state.change_clusters(clusters, record.transfers)
        self._clusters = clusters
        if self._prompts is not None:
            clusters.remember(self._prompts)

    def _restore(self, snapshot: Path) -> None:
        self._clusters = load_clusters(snapshot / CODEBOOK_FILE)
        self._state = MomentsState(self._config, len(self._clusters))
        self._state.heirs = self._clusters.heirs
        origin = self._state.load(snapshot)
        self._counts = origin.counts
        if origin.codebook != self._clusters.fingerprint:
            raise ValueError(f"snapshot {snapshot} is mixed up: its moments belong to codebook {origin.codebook}")
        if not self._versions.records():
            # An incarnation's log begins with the version that it goes on from.
            self._versions.record(self._clusters, self._state.last_step)

    def _replay(self) -> None:
        """Do again what this incarnation committed, and how its clusters changed in between, before the service died."""
        changes = deque(self._versions.records())

        def change_up_to(step: float) -> None:
            while changes and changes[0].after_step < step:
                record = changes.popleft()
                self._take(record, load_clusters(self._versions.path(record.version)))

        for commit, groups in self._ledger.commits():
            change_up_to(commit.step)
            self._fitted_state().fold(commit.step, committed_rewards(commit, groups))
        change_up_to(math.inf)

    def _count(self, group: ScoredGroup) -> None:
        self._counts.groups += 1
        self._counts.completions += len(group.rewards)
        self._counts.errors += sum(error is not None for error in group.errors)
        self._counts.lost += group.status is GroupStatus.LOST

    def _blend(self, step: int, entries: list[ReadyGroup]) -> Batch:
        state = self._fitted_state()
        headers = [entry.header for entry in entries]
        rewards = padded([group.rewards for group in headers])
        batch = RewardBatch(
            rewards=rewards,
            lengths=padded([group.lengths for group in headers], missing=0.0),
            prompts=tuple(group.prompt_id for group in headers),
            history=state.history(np.array([entry.cluster for entry in entries])),
        )
        own = state.estimate(batch)
        metrics = reward_metrics(headers, rewards)
        metrics |= signal_metrics(own, grpo(batch), self._config.blend.max_advantage)
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


def committed_rewards(commit: LedgerCommit, groups: Sequence[LedgerGroup]) -> CommittedRewards:
    """What the ledger remembers of a commit, ready to be folded in again."""
    return CommittedRewards(
        clusters=np.array([group.cluster for group in groups]),
        rewards=padded([group.rewards for group in groups]),
        prompts=tuple(group.prompt_id for group in groups),
        policy_version=commit.policy_version,
        move=commit.move,
    )


def padded(rows: Sequence[Sequence[float | None]], missing: float = np.nan) -> np.ndarray:
    """Ragged rows as [M, G] float64, `missing` where there is nothing."""
    width = max(len(row) for row in rows)
    table = np.full((len(rows), width), missing)
    for i, row in enumerate(rows):
        table[i, : len(row)] = [missing if value is None else value for value in row]
    return table

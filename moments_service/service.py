"""The moments service: takes scored groups in, hands out batches of blended advantages, remembers what was trained on.

Plain async Python in one event loop; `actor.py` is the Ray shell around it. Everything that may be sent twice is
recognised by its id: `submit` by group, `next_batch` and `commit` by step.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from moments_service.buffer import GroupBuffer, GroupStore, ReadyGroups, committed_rewards
from moments_service.clusters import (
    ClusterChange,
    Clusters,
    PromptSet,
    fit_clusters,
    load_clusters,
    refuse_other_clusters,
)
from moments_service.clusters.adapting import adapted
from moments_service.clusters.versions import ClusterVersions
from moments_service.config import MomentsConfig
from moments_service.estimators import RewardBatch
from moments_service.estimators.grpo import grpo
from moments_service.health import error_share, many_errors
from moments_service.ledger import DEFAULT_LIMITS, LedgerLimits, RunLedger, shard_directories
from moments_service.messages.batch import Batch
from moments_service.messages.groups import GroupStatus, PolicyMove, ScoredGroup, Transcript
from moments_service.messages.table import GroupTable
from moments_service.moments.expected_signal import ExpectedSignal, expected_signal
from moments_service.offline.portable import CODEBOOK_FILE, WarmStart
from moments_service.offline.rebuild import RunHistory
from moments_service.seeding import derive_seed
from moments_service.sharding import LedgerShard, LocalShard, ShardedLedger
from moments_service.signal import reward_metrics, signal_metrics
from moments_service.state import Counts, MomentsState, SnapshotOrigin

logger = logging.getLogger(__name__)


class MomentsService:
    """Owner of the ledger, the clusters and the moments of one run.

    directory: where the ledger and every version of the clusters live.    incarnation: which start of the run this is.
    snapshot: directory written by `snapshot`, to go on from; what this incarnation's ledger holds is replayed on top.
    """

    def __init__(
        self,
        config: MomentsConfig,
        directory: Path,
        seed: int,
        incarnation: int = 0,
        snapshot: Path | None = None,
        limits: LedgerLimits = DEFAULT_LIMITS,
        open_shard: Callable[[Path, int, int, LedgerLimits], LedgerShard] = LocalShard,
    ) -> None:
        self._config = config
        self._directory = directory
        self._seed = seed
        self._incarnation = incarnation
        self._buffer = GroupBuffer()
        self._drawn: Batch | None = None
        # Groups that nobody will train on; they wait here for the next commit to enter history.
        self._closed = GroupStore()
        # Those of them that a dead service acknowledged; a sender that tries again brings their payload back.
        self._orphans: set[str] = set()
        # Those that the commit under way takes in. If it fails they stay here for when it is sent again.
        self._leaving: ReadyGroups | None = None
        # Ids on their way to the disk, and ids between their acknowledgement and their commit; the ledger knows older ones.
        self._writing: dict[str, asyncio.Future[None]] = {}
        self._open: set[str] = set()
        self._committing = asyncio.Lock()
        self._counts = Counts()
        self._counts_before = Counts()
        directory.mkdir(parents=True, exist_ok=True)
        self._versions = ClusterVersions(directory, incarnation)
        self._prompts: PromptSet | None = None
        # [N] cluster of each prompt, by the version in force.
        self._assigned = np.zeros(0, dtype=np.int64)
        self._history = RunHistory(config, directory)
        if snapshot is not None:
            self._restore(snapshot)
        after_step = -1 if self._history.state is None else self._history.state.last_step
        directories = shard_directories(directory, config.shards)
        shards = [open_shard(path, incarnation, after_step, limits) for path in directories]
        self._ledger = ShardedLedger(shards, directories, incarnation)
        self._replay()

    async def fit_clusters(self, prompts: PromptSet | np.ndarray) -> int:
        """Make the clusters of the prompt set; where there are some, grow them for prompts unlike any seen before.

        prompts: or bare embeddings, [N, d] float32, unit length. Returns the number of clusters.
        Raises ValueError if the clusters that there are were made by another encoder or of something else.
        """
        prompts = prompts if isinstance(prompts, PromptSet) else PromptSet.of_embeddings(prompts)
        if self._history.clusters is None:
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
        self._assigned = self._fitted().remember(prompts)
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
        await self.submit_table(GroupTable.of([group]), [payload], [transcript])

    async def submit_table(
        self, table: GroupTable, payloads: Sequence[Any], transcripts: Sequence[Transcript | None] | None = None
    ) -> None:
        """Take many scored groups at once, as `submit` takes one. payloads, transcripts: one per row."""
        table.check()
        known = self._fitted()
        await self._adopt_orphans(table, payloads)
        twins = {writing for group_id in table.group_ids if (writing := self._writing.get(group_id)) is not None}
        rows = self._new_rows(table)
        if len(rows):
            clusters = known.assign(table)
            fresh = ReadyGroups(table.headers(), clusters, payloads)
            if len(rows) < len(table):
                fresh = fresh.take(rows)
                transcripts = None if transcripts is None else [transcripts[row] for row in rows]
            # A task of its own: whoever sends may give up, the group is taken in all the same.
            storing = asyncio.create_task(self._store(fresh.marked_lost(), transcripts))
            self._writing.update(dict.fromkeys(fresh.table.group_ids, storing))
            await asyncio.shield(storing)
        for writing in twins:
            await asyncio.shield(writing)

    async def mark_lost(self, group_ids: tuple[str, ...]) -> tuple[str, ...]:
        """Close groups whose payload died before a batch was made of them. They still count in history.

        Ids that were never submitted or are drawn already are left alone. Returns the ids that were closed.
        """
        lost = self._buffer.remove(group_ids)
        if lost is None:
            return ()
        await self._ledger.append_losses(lost)
        self._counts.lost += len(lost)
        self._closed.put(lost)
        return lost.table.group_ids

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
        self._drawn = self._blend(step, await self._buffer.take(groups))
        return self._drawn

    async def withdraw(self, step: int, lost: tuple[str, ...]) -> None:
        """Take the batch of `step` back because payloads in it are lost: those close, the others wait again."""
        if self._drawn is None or self._drawn.step != step:
            return
        if self._leaving is not None:
            raise RuntimeError(f"the commit of step {step} has begun; only the same commit can follow")
        batch, self._drawn = self._drawn, None
        await self._buffer.put(ReadyGroups.of(batch))
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
            batch = self._drawn
            trained = ReadyGroups.of(batch)
            if self._leaving is None:
                self._leaving = self._closed.take_all(trained)
                self._orphans.difference_update(self._leaving.table.group_ids)
            closed = self._leaving if len(self._leaving) else None
            await self._ledger.append_commit(batch, policy_version, move, self._leaving)
            state.fold(step, committed_rewards(trained, closed, policy_version, move))
            self._open.difference_update(batch.group_ids, self._leaving.table.group_ids)
            self._drawn = self._leaving = None
            self._counts.trained += len(batch.table)

    async def stats(self) -> dict[str, Any]:
        """Counts, queue depth and the moments of every cluster, for people and dashboards."""
        counts = asdict(self._counts_before + self._counts)
        stats: dict[str, Any] = {"counts": counts, "ready": len(self._buffer), "last_step": -1}
        if (state := self._history.state) is not None:
            every = np.arange(len(state.moments))
            history = state.moments.history(every)
            nothing = np.full((len(every), 1), np.nan)
            unknown = RewardBatch(nothing, np.zeros_like(nothing), ("",) * len(every), history)
            stats["last_step"] = state.last_step
            stats["clusters"] = {
                "mean": history.mean.tolist(),
                "variance": history.variance.tolist(),
                "mass": history.mass.tolist(),
                "weight": state.estimate(unknown).weight.tolist(),
                "seen": history.seen.tolist(),
            }
        return stats

    async def expected_signal(self) -> ExpectedSignal:
        """What history says of the groups to come, for every prompt that `fit_clusters` got; [N] and [K] arrays."""
        state = self._fitted_state()
        return expected_signal(state.history(np.arange(len(state.moments))), self._assigned)

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
        clusters, state = self._fitted(), self._fitted_state()
        clusters.save(directory / CODEBOOK_FILE)
        origin = SnapshotOrigin(
            clusters.fingerprint,
            self._config.estimator,
            state.last_step,
            self._incarnation,
            self._counts,
            self._counts_before,
        )
        state.save(directory, origin)

    async def close(self) -> None:
        """Finish pending writes and close the ledger."""
        await self._ledger.close()

    def _fitted(self) -> Clusters:
        if self._history.clusters is None:
            raise RuntimeError("the moments service has no clusters yet: call fit_clusters first")
        return self._history.clusters

    def _fitted_state(self) -> MomentsState:
        self._fitted()
        assert self._history.state is not None
        return self._history.state

    def _change(self, change: ClusterChange | None) -> None:
        """Go over to another version of the clusters, from the next commit on. It is on the disk before it counts."""
        if change is None:
            return
        last_step = -1 if self._history.state is None else self._history.state.last_step
        self._versions.record(change.clusters, last_step, change.transfers)
        self._history.take(change.clusters, change.transfers)
        if self._prompts is not None:
            self._assigned = change.clusters.remember(self._prompts)

    def _restore(self, snapshot: Path) -> None:
        clusters = load_clusters(snapshot / CODEBOOK_FILE)
        self._history.clusters = clusters
        self._history.state = state = MomentsState(self._config, len(clusters))
        state.heirs = clusters.heirs
        origin = state.load(snapshot)
        if origin.codebook != clusters.fingerprint:
            raise ValueError(f"snapshot {snapshot} is mixed up: its moments belong to codebook {origin.codebook}")
        if not self._versions.records():
            # An incarnation's log begins with the version that it goes on from.
            self._versions.record(clusters, state.last_step)
        self._counts_before = origin.counts_before
        if origin.incarnation < self._incarnation:
            self._counts_before += origin.counts

    def _replay(self) -> None:
        """Take in again what this incarnation acknowledged and committed before the service died."""
        reader = RunLedger(self._directory)
        try:
            self._counts = reader.counts(self._incarnation)
            first_step = 0 if self._history.state is None else self._history.state.last_step + 1
            self._history.replay(reader, self._incarnation, first_step)
            if unfolded := reader.unfolded(self._incarnation):
                headers, clusters = zip(*unfolded, strict=True)
                self._closed.put(ReadyGroups(GroupTable.of(headers), np.array(clusters), [None] * len(headers)))
                self._open.update(group.group_id for group in headers)
                self._orphans.update(group.group_id for group in headers if group.status is GroupStatus.SCORED)
        finally:
            reader.close()

    def _new_rows(self, table: GroupTable) -> Sequence[int]:
        """Rows that are neither waiting for their commit nor on their way to the disk, each id once."""
        ids = set(table.group_ids)
        taken = (self._open, self._writing.keys())
        if len(ids) == len(table) and all(ids.isdisjoint(known) for known in taken):
            return range(len(table))
        rows: dict[str, int] = {}
        for row, group_id in enumerate(table.group_ids):
            if not any(group_id in known for known in taken):
                rows.setdefault(group_id, row)
        return list(rows.values())

    async def _adopt_orphans(self, table: GroupTable, payloads: Sequence[Any]) -> None:
        back = {
            group_id: payload
            for group_id, payload in zip(table.group_ids, payloads, strict=True)
            if group_id in self._orphans and payload is not None
        }
        if (adopted := self._closed.remove(back)) is not None:
            self._orphans.difference_update(back)
            await self._buffer.put(replace(adopted, payloads=[back[group_id] for group_id in adopted.table.group_ids]))

    async def _store(self, groups: ReadyGroups, transcripts: Sequence[Transcript | None] | None) -> None:
        sent = groups.table.group_ids
        try:
            if held := await self._ledger.held(groups.table):
                rows = [row for row, group_id in enumerate(sent) if group_id not in held]
                groups = groups.take(rows)
                transcripts = None if transcripts is None else [transcripts[row] for row in rows]
            if not len(groups):
                return
            await self._ledger.append(groups, transcripts)
        finally:
            for group_id in sent:
                del self._writing[group_id]
        table = groups.table
        self._open.update(table.group_ids)
        self._counts.groups += len(table)
        self._counts.completions += int(table.sizes.sum())
        self._counts.errors += int((np.isnan(table.rewards) & table.filled()).sum())
        self._counts.lost += int(table.lost.sum())
        trainable = ~table.lost & table.scored()
        if not trainable.all():
            self._closed.put(groups.take(np.flatnonzero(~trainable)))
            groups = groups.take(np.flatnonzero(trainable))
        await self._buffer.put(groups)

    def _blend(self, step: int, groups: ReadyGroups) -> Batch:
        state = self._fitted_state()
        table, clusters = groups.table, groups.clusters
        rewards = RewardBatch(
            table.rewards, table.lengths.astype(np.float64), table.prompt_ids, state.history(clusters)
        )
        own = state.estimate(rewards)
        metrics = reward_metrics(table) | signal_metrics(own, grpo(rewards), self._config.blend.max_advantage)
        together = committed_rewards(groups, self._closed.all(), policy_version=-1, move=None)
        metrics["reward/errors"] = share = error_share(together)
        alarms = state.alarms(together)
        if share > (limit := self._config.health.error_share):
            alarms = (*alarms, many_errors(limit, share))
            logger.warning("%.0f%% of the completions have no reward: %s", 100 * share, self._error_examples(table))
        return Batch(
            step=step,
            table=table,
            payloads=tuple(groups.payloads),
            clusters=clusters,
            advantages=own.values,
            baseline=own.baseline,
            scale=own.scale,
            weight=own.weight,
            metrics=metrics,
            alarms=alarms,
        )

    def _error_examples(self, table: GroupTable) -> str:
        every = (*table.errors, *self._closed.errors())
        errors = {error for errors in every for error in errors or () if error is not None}
        return "; ".join(sorted(errors)[:3])

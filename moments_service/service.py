"""The moments service: takes scored groups in, hands out batches of blended advantages, remembers what was trained on.

Plain async Python in one event loop; `actor.py` is the Ray shell around it. Everything that may be sent twice is
recognised by its id: `submit` by group, `draw` and `commit` by step.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from moments_service.clusters import ClusterChange, Clusters, PromptSet, fit_clusters, refuse_other_clusters
from moments_service.clusters.adapting import adapted
from moments_service.clusters.versions import ClusterVersions
from moments_service.config import MomentsConfig
from moments_service.drawing import blend
from moments_service.durable import strict_json
from moments_service.held import Groups, committed_rewards
from moments_service.history import RunHistory
from moments_service.intake import Intake
from moments_service.ledger import DEFAULT_LIMITS, Ledger, LedgerEnd, LedgerLimits, LedgerReader
from moments_service.ledger.parts import part_paths
from moments_service.ledger.seals import LedgerDamagedError, lost_end
from moments_service.messages.batch import Batch
from moments_service.messages.counts import Counts
from moments_service.messages.groups import PolicyMove, ScoredGroup, Transcript
from moments_service.messages.table import GroupTable
from moments_service.moments.expected_signal import ExpectedSignal, expected_signal
from moments_service.offline.portable import CODEBOOK_FILE, WarmStart
from moments_service.seeding import derive_seed
from moments_service.state import MomentsState, SnapshotOrigin

logger = logging.getLogger(__name__)


class MomentsService:
    """Owner of the ledger, the clusters and the moments of one run.

    directory: where the ledger and every version of the clusters live.    incarnation: which start of the run this is.
    snapshot: directory written by `snapshot`, to go on from; what this incarnation's ledger holds is replayed on top.
    run_config: all that the run is configured with, for the ledger; its `moments` are `config`.    without_lost_groups: go on
    where the ledger has lost its end since the snapshot was taken; else LedgerDamagedError is raised.
    """

    def __init__(
        self,
        config: MomentsConfig,
        directory: Path,
        seed: int,
        incarnation: int = 0,
        snapshot: Path | None = None,
        limits: LedgerLimits = DEFAULT_LIMITS,
        run_config: dict[str, Any] | None = None,
        without_lost_groups: bool = False,
    ) -> None:
        self._config = config
        self._directory = directory
        self._seed = seed
        self._incarnation = incarnation
        self._drawn: Batch | None = None
        # Closed groups that the commit under way takes in. If it fails they stay here for when it is sent again.
        self._leaving: Groups | None = None
        self._committing = asyncio.Lock()
        self._counts_before = Counts()
        directory.mkdir(parents=True, exist_ok=True)
        self._versions = ClusterVersions(directory, incarnation)
        # The prompts that the run began with, and those that it was told of later.
        self._prompts: PromptSet | None = None
        self._later: list[PromptSet] = []
        # [N] cluster of each prompt that the run began with, by the version in force.
        self._assigned = np.zeros(0, dtype=np.int64)
        self._history = RunHistory(config, directory)
        origin = None if snapshot is None else self._restore(snapshot)
        after_step = -1 if origin is None else origin.last_step
        whole = strict_json({**(run_config or {}), "moments": config.model_dump(mode="json")})
        self._ledger = Ledger(directory, incarnation, after_step, limits, whole)
        if origin is not None and origin.ledger is not None:
            self._miss_lost_end(origin.ledger, without_lost_groups)
        self._intake = self._replayed()

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

    async def remember(self, prompts: PromptSet) -> int:
        """Take in prompts that `fit_clusters` did not get, before a group of one is submitted. Returns the number of clusters.

        The clusters grow for those that are unlike any seen before. Raises ValueError for prompts of another encoder.
        """
        refuse_other_clusters(self._fitted(), self._config.clusters.by, prompts.encoder)
        self._change(await asyncio.to_thread(self._fitted().grown, prompts))
        self._later.append(prompts)
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
        await self.submit_table(GroupTable.of([group]), [payload], [transcript])

    async def submit_table(
        self, table: GroupTable, payloads: Sequence[Any], transcripts: Sequence[Transcript | None] | None = None
    ) -> None:
        """Take many scored groups at once, as `submit` takes one. payloads, transcripts: one per row.

        Raises ValueError, and takes none, where one contradicts itself or its prompt is unknown (see `remember`).
        """
        table.check()
        await self._intake.submit(table, payloads, transcripts, self._fitted().assign)

    async def mark_lost(self, group_ids: tuple[str, ...]) -> tuple[str, ...]:
        """Close groups whose payload died, or will never be asked for, before a batch was made of them.

        They still count in history. One that is yet to come is closed when it comes; one that is drawn already is left alone.
        Returns the ids that were closed.
        """
        return await self._intake.mark_lost(group_ids)

    async def draw(self, step: int, group_ids: Sequence[str]) -> Batch:
        """The batch of `step`: these groups in feed order, with advantages from the state before them.

        Asked again for the same step and groups, it returns the same batch. Raises RuntimeError for other groups, for a step that
        is over, while another step is not committed, and for a group that is not ready, which it names.
        """
        # No await in here, so that whoever else asks comes before or after, never in between.
        if self._drawn is not None:
            return self._same_batch(self._drawn, step, group_ids)
        state = self._fitted_state()
        if step <= state.last_step:
            raise RuntimeError(f"step {step} is committed already; the last one is {state.last_step}")
        wanted = set(group_ids)
        if not wanted or len(wanted) < len(group_ids):
            raise RuntimeError(f"step {step} asks for {len(group_ids)} groups, {len(wanted)} of them distinct")
        ready = self._intake.ready
        if missing := sorted(group_id for group_id in wanted if group_id not in ready):
            raise RuntimeError(f"step {step}: {len(missing)} groups are not ready: {', '.join(missing[:3])}")
        self._drawn = blend(self._config, state, step, ready.take(group_ids), self._intake.closed)
        return self._drawn

    async def withdraw(self, step: int, lost: tuple[str, ...]) -> None:
        """Take the batch of `step` back because payloads in it are lost: those close, the others wait again."""
        if self._drawn is None or self._drawn.step != step:
            return
        if self._leaving is not None:
            raise RuntimeError(f"the commit of step {step} has begun; only the same commit can follow")
        batch, self._drawn = self._drawn, None
        self._intake.ready.put(Groups.of(batch))
        await self._intake.mark_lost(lost)

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
            if self._leaving is None:
                self._leaving = self._intake.closed.take_all()
            closed, trained = self._leaving, Groups.of(batch)
            await self._ledger.append_commit(batch, policy_version, move, closed.table, closed.clusters)
            state.fold(step, committed_rewards(trained, closed, policy_version, move))
            self._intake.release(trained, closed)
            self._drawn = self._leaving = None
            self._intake.counts.trained += len(batch.table)

    async def stats(self) -> dict[str, Any]:
        """Counts and queue depth; cheap, for every step."""
        counts = asdict(self._counts_before + self._intake.counts)
        last_step = -1 if self._history.state is None else self._history.state.last_step
        return {"counts": counts, "ready": len(self._intake.ready), "last_step": last_step}

    async def cluster_stats(self) -> dict[str, list[Any]]:
        """The moments of every cluster, K numbers each, for people and dashboards; nothing before there are clusters."""
        return {} if self._history.state is None else self._history.state.cluster_stats()

    async def expected_signal(self) -> ExpectedSignal:
        """What history says of the groups to come, for every prompt that `fit_clusters` got, and how the last ones came out."""
        state = self._fitted_state()
        return expected_signal(state.history(np.arange(len(state.moments))), self._assigned, state.outcomes)

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
            self._config.estimator.kind,
            state.last_step,
            self._incarnation,
            self._intake.counts,
            self._counts_before,
            self._ledger.end,
        )
        state.save(directory, origin)

    async def close(self) -> None:
        """Finish pending writes and close the ledger."""
        await self._ledger.close()

    def _same_batch(self, drawn: Batch, step: int, group_ids: Sequence[str]) -> Batch:
        if drawn.step != step:
            raise RuntimeError(f"step {step} asked for a batch while step {drawn.step} is not committed")
        if other := sorted(set(group_ids).symmetric_difference(drawn.group_ids)):
            raise RuntimeError(
                f"step {step} was drawn with other groups: {', '.join(other[:3])} only here or only there"
            )
        return drawn

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
        for prompts in self._later:
            change.clusters.remember(prompts)

    def _restore(self, snapshot: Path) -> SnapshotOrigin:
        origin = self._history.restore(snapshot)
        if not self._versions.records():
            # An incarnation's log begins with the version that it goes on from.
            self._versions.record(self._fitted(), origin.last_step)
        self._counts_before = origin.counts_before
        if origin.incarnation < self._incarnation:
            self._counts_before += origin.counts
        return origin

    def _miss_lost_end(self, known: LedgerEnd, accepted: bool) -> None:
        lost = lost_end(self._directory, part_paths(self._directory), known)
        if lost is not None and not accepted:
            raise LedgerDamagedError(lost)
        if lost is not None:
            logger.warning("%s; groups in it cannot be looked up, and steps in it not be made again", lost)

    def _replayed(self) -> Intake:
        """Take in again what this incarnation acknowledged and committed before the service died."""
        with LedgerReader(self._directory) as reader:
            first_step = 0 if self._history.state is None else self._history.state.last_step + 1
            self._history.replay(reader, self._incarnation, first_step)
            return Intake(self._ledger, reader.counts(self._incarnation), reader.unfolded(self._incarnation))

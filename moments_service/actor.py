"""The Ray shell around the moments service and the shards of its ledger."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from moments_service.clusters import PromptSet
from moments_service.config import MomentsConfig
from moments_service.ledger import LedgerLimits
from moments_service.messages.batch import Batch
from moments_service.messages.groups import PolicyMove, Transcript
from moments_service.messages.table import GroupTable
from moments_service.moments import Indices
from moments_service.moments.expected_signal import ExpectedSignal
from moments_service.service import MomentsService
from moments_service.sharding import Key, LocalShard


class ShardActor:
    """One shard of the ledger in a process of its own; every call is the ledger's own, see there."""

    def __init__(self, directory: str, incarnation: int, after_step: int, limits: LedgerLimits) -> None:
        self._shard = LocalShard(Path(directory), incarnation, after_step, limits)

    async def add_commits(self, commits: Sequence[tuple[Any, ...]]) -> None:
        self._shard.add_commits(commits)

    async def append(
        self, table: GroupTable, clusters: Indices, transcripts: Sequence[Transcript | None] | None
    ) -> None:
        await self._shard.append(table, clusters, transcripts)

    async def held(self, table: GroupTable) -> set[str]:
        return await self._shard.held(table)

    async def append_losses(self, groups: Sequence[Key]) -> None:
        await self._shard.append_losses(groups)

    async def append_commit(
        self,
        batch: Batch,
        policy_version: int,
        move: PolicyMove | None,
        closed: GroupTable,
        closed_clusters: Indices,
    ) -> None:
        await self._shard.append_commit(batch, policy_version, move, closed, closed_clusters)

    async def close(self) -> None:
        await self._shard.close()


class RemoteShard:
    """A `ShardActor` as the service sees it. It ends with the process that made it, and is not restarted."""

    def __init__(self, directory: Path, incarnation: int, after_step: int, limits: LedgerLimits) -> None:
        actor = ray.remote(ShardActor).options(
            num_cpus=0, max_restarts=0, max_concurrency=1000, scheduling_strategy=_on_this_node()
        )
        self._actor: Any = actor.remote(str(directory), incarnation, after_step, limits)
        # The service reads what all shards hold; from here on this one is open, and cut where its end was torn.
        self.add_commits([])

    def add_commits(self, commits: Sequence[tuple[Any, ...]]) -> None:
        ray.get(self._actor.add_commits.remote(commits))

    async def append(
        self, table: GroupTable, clusters: Indices, transcripts: Sequence[Transcript | None] | None
    ) -> None:
        await self._actor.append.remote(table, clusters, transcripts)

    async def held(self, table: GroupTable) -> set[str]:
        held: set[str] = await self._actor.held.remote(table)
        return held

    async def append_losses(self, groups: Iterable[Key]) -> None:
        await self._actor.append_losses.remote(list(groups))

    async def append_commit(
        self,
        batch: Batch,
        policy_version: int,
        move: PolicyMove | None,
        closed: GroupTable,
        closed_clusters: Indices,
    ) -> None:
        await self._actor.append_commit.remote(batch, policy_version, move, closed, closed_clusters)

    async def close(self) -> None:
        await self._actor.close.remote()


class MomentsActor:
    """One per run; every call is the service's own, see there. Several shards are actors that it starts itself."""

    def __init__(
        self, config: MomentsConfig, directory: str, seed: int, incarnation: int, snapshot: str | None
    ) -> None:
        self._service = MomentsService(
            config,
            Path(directory),
            seed,
            incarnation,
            Path(snapshot) if snapshot is not None else None,
            open_shard=LocalShard if config.shards == 1 else RemoteShard,
        )

    async def fit_clusters(self, prompts: PromptSet) -> int:
        return await self._service.fit_clusters(prompts)

    async def adapt_clusters(self) -> None:
        await self._service.adapt_clusters()

    async def submit_table(
        self, table: GroupTable, payloads: list[Any], transcripts: list[Transcript | None] | None = None
    ) -> None:
        """payloads: a list, in which Ray leaves references as they are."""
        await self._service.submit_table(table, payloads, transcripts)

    async def mark_lost(self, group_ids: tuple[str, ...]) -> tuple[str, ...]:
        return await self._service.mark_lost(group_ids)

    async def next_batch(self, step: int, groups: int) -> Batch:
        return await self._service.next_batch(step, groups)

    async def withdraw(self, step: int, lost: tuple[str, ...]) -> None:
        await self._service.withdraw(step, lost)

    async def commit(self, step: int, policy_version: int, move: PolicyMove | None = None) -> None:
        await self._service.commit(step, policy_version, move)

    async def stats(self) -> dict[str, Any]:
        return await self._service.stats()

    async def expected_signal(self) -> ExpectedSignal:
        return await self._service.expected_signal()

    async def assign(self, prompts: PromptSet) -> np.ndarray:
        return await self._service.assign(prompts)

    async def snapshot(self, directory: str) -> None:
        await self._service.snapshot(Path(directory))

    async def close(self) -> None:
        await self._service.close()


def spawn_moments_actor(
    config: MomentsConfig, directory: Path, seed: int, incarnation: int, snapshot: Path | None
) -> Any:
    """Start the service of a run, on this node. It is not restarted by Ray: without its buffer the run must resume from a checkpoint."""
    actor = ray.remote(MomentsActor).options(
        num_cpus=0, max_restarts=0, max_concurrency=1000, scheduling_strategy=_on_this_node()
    )
    return actor.remote(config, str(directory), seed, incarnation, str(snapshot) if snapshot is not None else None)


def _on_this_node() -> NodeAffinitySchedulingStrategy:
    """Ray puts an actor that asks for no CPU on any node; the ledger must stay where its files are locked and fast."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)

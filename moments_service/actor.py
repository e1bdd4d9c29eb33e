"""The Ray shell around the moments service."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from moments_service.clusters import PromptSet
from moments_service.config import MomentsConfig
from moments_service.heap import freeze_heap
from moments_service.messages.batch import Batch
from moments_service.messages.groups import PolicyMove, Transcript
from moments_service.messages.table import GroupTable
from moments_service.moments.expected_signal import ExpectedSignal
from moments_service.service import MomentsService


class MomentsActor:
    """One per run; every call is the service's own, see there."""

    def __init__(
        self,
        config: MomentsConfig,
        directory: str,
        seed: int,
        incarnation: int,
        snapshot: str | None,
        run_config: dict[str, Any] | None,
        without_lost_groups: bool,
    ) -> None:
        self._service = MomentsService(
            config,
            Path(directory),
            seed,
            incarnation,
            Path(snapshot) if snapshot is not None else None,
            run_config=run_config,
            without_lost_groups=without_lost_groups,
        )

    async def fit_clusters(self, prompts: PromptSet) -> int:
        clusters = await self._service.fit_clusters(prompts)
        freeze_heap()
        return clusters

    async def remember(self, prompts: PromptSet) -> int:
        return await self._service.remember(prompts)

    async def adapt_clusters(self) -> None:
        await self._service.adapt_clusters()

    async def submit_table(
        self, table: GroupTable, payloads: list[Any], transcripts: list[Transcript | None] | None = None
    ) -> None:
        """payloads: a list, in which Ray leaves references as they are."""
        await self._service.submit_table(table, payloads, transcripts)

    async def mark_lost(self, group_ids: tuple[str, ...]) -> tuple[str, ...]:
        return await self._service.mark_lost(group_ids)

    async def draw(self, step: int, group_ids: Sequence[str]) -> Batch:
        return await self._service.draw(step, group_ids)

    async def withdraw(self, step: int, lost: tuple[str, ...]) -> None:
        await self._service.withdraw(step, lost)

    async def commit(self, step: int, policy_version: int, move: PolicyMove | None = None) -> dict[str, Any]:
        """Returns the service's `stats` after it: whoever counts steps need not ask once more."""
        await self._service.commit(step, policy_version, move)
        return await self._service.stats()

    async def stats(self) -> dict[str, Any]:
        return await self._service.stats()

    async def cluster_stats(self) -> dict[str, list[Any]]:
        return await self._service.cluster_stats()

    async def expected_signal(self) -> ExpectedSignal:
        return await self._service.expected_signal()

    async def assign(self, prompts: PromptSet) -> np.ndarray:
        return await self._service.assign(prompts)

    async def snapshot(self, directory: str) -> None:
        await self._service.snapshot(Path(directory))

    async def close(self) -> None:
        await self._service.close()


def spawn_moments_actor(
    config: MomentsConfig,
    directory: Path,
    seed: int,
    incarnation: int,
    snapshot: Path | None,
    run_config: dict[str, Any] | None = None,
    without_lost_groups: bool = False,
) -> Any:
    """Start the service of a run, on this node; see `MomentsService`. It is not restarted by Ray: without its buffer the run must resume from a checkpoint."""
    # Ray puts an actor that asks for no CPU on any node; the ledger must stay where its files are locked and fast.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(MomentsActor).options(num_cpus=0, max_restarts=0, max_concurrency=1000, scheduling_strategy=here)
    place = None if snapshot is None else str(snapshot)
    return actor.remote(config, str(directory), seed, incarnation, place, run_config, without_lost_groups)

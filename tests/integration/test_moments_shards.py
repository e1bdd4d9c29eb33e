"""The moments actor with shards in processes of their own."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from moments_service.actor import spawn_moments_actor
from moments_service.clusters import PromptSet
from moments_service.config import ClusterConfig, MomentsConfig
from moments_service.ledger import RunLedger, ledger_directories
from moments_service.messages.table import GroupTable

pytestmark = pytest.mark.integration

EMBEDDINGS = np.eye(6, dtype=np.float32)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


def table(step: int, groups: int = 64) -> GroupTable:
    generator = np.random.default_rng(step)
    sequence = np.arange(step * groups, (step + 1) * groups)
    return GroupTable(
        group_ids=tuple(f"prompt{at}:0:0:0" for at in sequence),
        prompt_ids=tuple(f"prompt{at}" for at in sequence),
        sources=("sums",) * groups,
        difficulties=("",) * groups,
        sequence=sequence,
        sizes=np.full(groups, 4),
        rewards=generator.integers(0, 2, (groups, 4)).astype(np.float64),
        errors=(None,) * groups,
        lengths=generator.integers(1, 9, (groups, 4)),
        truncated=np.zeros((groups, 4), dtype=np.bool_),
        policy_versions=np.full((groups, 2), step),
        lost=np.zeros(groups, dtype=np.bool_),
        embeddings=EMBEDDINGS[generator.integers(0, 6, groups)],
    )


async def trained(actor: Any, steps: range) -> list[bytes]:
    """Advantages of every step; each table is sent twice."""
    found = []
    for step in steps:
        groups, payloads = table(step), [[ray.put("tokens")]] * 64
        await asyncio.gather(*(actor.submit_table.remote(groups, payloads) for _ in range(2)))
        batch = await actor.next_batch.remote(step, 64)
        assert ray.get(batch.payloads[0][0]) == "tokens"
        found.append(batch.advantages.tobytes())
        await actor.commit.remote(step, step + 1)
    return found


async def test_shards_in_other_processes_give_the_same_numbers_and_a_resume_goes_on(
    cluster: None, tmp_path: Path
) -> None:
    advantages = {}
    for shards in (1, 2):
        settings = MomentsConfig(shards=shards, clusters=ClusterConfig(count=6))
        actor = spawn_moments_actor(settings, tmp_path / str(shards), seed=0, incarnation=0, snapshot=None)
        await actor.fit_clusters.remote(PromptSet.of_embeddings(EMBEDDINGS))
        advantages[shards] = await trained(actor, range(3))
        (snapshot := tmp_path / f"snapshot{shards}").mkdir()
        await actor.snapshot.remote(str(snapshot))
        if shards == 1:
            await actor.close.remote()
    assert advantages[1] == advantages[2]
    assert len(ledger_directories(tmp_path / "2")) == 2
    ray.kill(actor)
    resumed = spawn_moments_actor(settings, tmp_path / "2", seed=0, incarnation=1, snapshot=tmp_path / "snapshot2")
    await trained(resumed, range(3, 5))
    await resumed.close.remote()
    reader = RunLedger(tmp_path / "2")
    assert reader.steps(1) == [0, 1, 2, 3, 4]
    reader.close()

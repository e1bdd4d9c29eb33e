"""A ledger over several shards: the same numbers as with one, and everything exactly once whatever dies in between."""

import asyncio
import random
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from moments_service.config import ClusterConfig, MomentsConfig
from moments_service.estimators import ESTIMATORS
from moments_service.ledger import RunLedger, last_incarnation, ledger_directories
from moments_service.messages.groups import GroupStatus, PolicyMove, ScoredGroup
from moments_service.messages.table import GroupTable
from moments_service.offline.explain import explain
from moments_service.offline.rebuild import rebuild
from moments_service.service import MomentsService
from moments_service.sharding import LocalShard
from moments_service.state import MOMENTS_FILE, MomentsState

pytestmark = pytest.mark.unit

CLUSTERS = 7
EMBEDDINGS = np.eye(CLUSTERS, dtype=np.float32)
STEPS, GROUPS = 5, 9


def config(shards: int, estimator: str = "bv_blend", **more: Any) -> MomentsConfig:
    return MomentsConfig(estimator=estimator, shards=shards, clusters=ClusterConfig(count=CLUSTERS), **more)


def groups_of(step: int) -> list[ScoredGroup]:
    """Ragged groups of fractional rewards, some of them failed, over all clusters; prompts come again."""
    generator = random.Random(step)
    groups = []
    for number in range(GROUPS):
        sequence = step * GROUPS + number
        cluster = generator.randrange(CLUSTERS)
        rewards = [generator.choice((0.0, 1.0, 0.3, 0.7, None)) for _ in range(generator.randint(1, 9))]
        scored = any(reward is not None for reward in rewards)
        groups.append(
            ScoredGroup(
                group_id=f"prompt{cluster}-{number % 3}:0:{sequence}:0",
                prompt_id=f"prompt{cluster}-{number % 3}",
                source="sums",
                sequence=sequence,
                rewards=tuple(rewards),
                errors=tuple(None if reward is not None else "verifier: crashed" for reward in rewards),
                lengths=tuple(generator.randint(1, 50) for _ in rewards),
                truncated=(False,) * len(rewards),
                policy_versions=(step, step),
                embedding=EMBEDDINGS[cluster],
                status=GroupStatus.SCORED if scored else GroupStatus.ERROR,
            )
        )
    return groups


async def submitted(service: MomentsService, groups: list[ScoredGroup]) -> int:
    """Submit in any order, one group without a payload. Returns how many can be trained on."""
    order = random.Random(len(groups)).sample(groups, len(groups))
    await asyncio.gather(*(service.submit(group, None if group.sequence % 11 == 5 else "tokens") for group in order))
    return int((await service.stats())["ready"])


def bits(state: MomentsState) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in state.arrays().items()}


async def numbers(directory: Path, settings: MomentsConfig) -> list[Any]:
    service = MomentsService(settings, directory, seed=0)
    await service.fit_clusters(EMBEDDINGS)
    found: list[Any] = []
    for step in range(STEPS):
        ready = await submitted(service, groups_of(step))
        batch = await service.next_batch(step, ready - 1)
        found += [batch.advantages.tobytes(), batch.baseline.tobytes(), batch.scale.tobytes(), batch.weight.tobytes()]
        found += [batch.group_ids, batch.metrics, batch.alarms]
        await service.commit(step, step + 1, PolicyMove(0.01 * step, 0.02))
    found.append(await service.stats())
    assert service._history.state is not None
    found.append(bits(service._history.state))
    await service.close()
    assert bits(rebuild(settings, directory)) == found[-1]
    return found


@pytest.mark.parametrize("estimator", ESTIMATORS)
async def test_three_shards_give_the_numbers_of_one(tmp_path: Path, estimator: str) -> None:
    one = await numbers(tmp_path / "one", config(1, estimator))
    three = await numbers(tmp_path / "three", config(3, estimator))
    assert len(ledger_directories(tmp_path / "three")) == 3
    assert [str(value) for value in one] == [str(value) for value in three]


class FailingShard(LocalShard):
    """A shard whose disk fails when it is told to."""

    failing: ClassVar[set[str]] = set()

    def __init__(self, directory: Path, *arguments: Any) -> None:
        super().__init__(directory, *arguments)
        self.name = directory.name
        append, append_commit = self.append, self.append_commit

        async def appended(*values: Any) -> None:
            self._refuse("append")
            await append(*values)

        async def committed(*values: Any) -> None:
            self._refuse("commit")
            await append_commit(*values)

        self.append, self.append_commit = appended, committed  # type: ignore[method-assign,assignment]

    def _refuse(self, call: str) -> None:
        if f"{self.name} {call}" in self.failing:
            raise RuntimeError("disk full")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    calls: set[str] = set()
    monkeypatch.setattr(FailingShard, "failing", calls)
    return calls


async def started(directory: Path) -> MomentsService:
    service = MomentsService(config(3), directory, seed=0, open_shard=FailingShard)
    await service.fit_clusters(EMBEDDINGS)
    return service


def rewards_in(directory: Path) -> tuple[int, int]:
    """Groups submitted, and groups folded in; none of them twice."""
    reader = RunLedger(directory)
    rows = reader.query("SELECT group_id FROM groups")
    folded = reader.query("SELECT group_id FROM folds")
    reader.close()
    assert len(rows) == len(set(rows)) and len(folded) == len(set(folded))
    return len(rows), len(folded)


async def test_a_submit_that_failed_on_one_shard_can_be_sent_again(tmp_path: Path, failing: set[str]) -> None:
    service = await started(tmp_path)
    failing.add("shard-1 append")
    groups = [group for group in groups_of(0) if group.status is GroupStatus.SCORED]
    results = await asyncio.gather(*(service.submit(group, "tokens") for group in groups), return_exceptions=True)
    assert any(isinstance(result, RuntimeError) for result in results)
    failing.clear()
    await asyncio.gather(*(service.submit(group, "tokens") for group in groups))
    assert (await service.stats())["ready"] == len(groups)
    assert (await service.stats())["counts"]["groups"] == len(groups)
    await service.next_batch(0, len(groups))
    await service.commit(0, 1)
    assert rewards_in(tmp_path) == (len(groups), len(groups))
    await service.close()


async def test_a_table_of_which_one_shard_lost_its_part_can_be_sent_again(tmp_path: Path, failing: set[str]) -> None:
    service = await started(tmp_path)
    table = GroupTable.of([group for group in groups_of(0) if group.status is GroupStatus.SCORED])
    failing.add("shard-1 append")
    with pytest.raises(RuntimeError, match="disk full"):
        await service.submit_table(table, ["tokens"] * len(table))
    assert (await service.stats())["ready"] == 0
    failing.clear()
    await service.submit_table(table, ["tokens"] * len(table))
    await service.submit_table(table, ["tokens"] * len(table))
    assert (await service.next_batch(0, len(table))).table.group_ids == table.group_ids
    await service.commit(0, 1)
    assert rewards_in(tmp_path) == (len(table), len(table))
    await service.close()


async def test_a_commit_that_failed_on_one_shard_can_be_sent_again(tmp_path: Path, failing: set[str]) -> None:
    service = await started(tmp_path)
    ready = await submitted(service, groups_of(0))
    await service.next_batch(0, ready)
    failing.add("shard-2 commit")
    with pytest.raises(RuntimeError, match="disk full"):
        await service.commit(0, 1)
    assert (await service.stats())["last_step"] == -1
    with pytest.raises(RuntimeError, match="has begun"):
        await service.withdraw(0, ())
    await submitted(service, groups_of(1))
    failing.clear()
    await service.commit(0, 1)
    assert rewards_in(tmp_path)[1] == GROUPS
    assert service._history.state is not None
    assert bits(rebuild(config(3), tmp_path)) == bits(service._history.state)
    await service.close()


@pytest.mark.parametrize("dead", ["shard-0", "shard-1", "shard-2"])
async def test_a_service_that_dies_between_two_shards_commits_counts_every_group_once(
    tmp_path: Path, failing: set[str], dead: str
) -> None:
    first = await started(tmp_path)
    await first.next_batch(0, await submitted(first, groups_of(0)))
    await first.commit(0, 1)
    await first.next_batch(1, await submitted(first, groups_of(1)))
    failing.add(f"{dead} commit")
    with pytest.raises(RuntimeError, match="disk full"):
        await first.commit(1, 2, PolicyMove(0.5, 0.1))
    failing.clear()
    # No close: the process is gone.
    second = MomentsService(config(3), tmp_path, seed=0, open_shard=FailingShard)
    assert (await second.stats())["last_step"] == 1
    await second.commit(1, 2, PolicyMove(0.5, 0.1))
    await second.next_batch(2, await submitted(second, groups_of(2)))
    await second.commit(2, 3)
    assert rewards_in(tmp_path) == (3 * GROUPS, 3 * GROUPS)
    assert second._history.state is not None
    assert bits(rebuild(config(3), tmp_path)) == bits(second._history.state)
    assert RunLedger(tmp_path).steps(0) == [0, 1, 2]
    await first.close()
    await second.close()


async def test_a_group_sent_again_under_another_cluster_counts_once(tmp_path: Path) -> None:
    service = MomentsService(config(3), tmp_path, seed=0)
    await service.fit_clusters(EMBEDDINGS)
    group = next(group for group in groups_of(0) if group.status is GroupStatus.SCORED)
    await service.submit(group, "tokens")
    await service.next_batch(0, 1)
    await service.commit(0, 1)
    assert group.embedding is not None
    changed = {name: getattr(group, name) for name in ScoredGroup.__slots__} | {
        "embedding": np.roll(group.embedding, 1)
    }
    await service.submit(ScoredGroup(**changed), "tokens")
    assert (await service.stats())["ready"] == 0 and rewards_in(tmp_path) == (1, 1)
    await service.close()


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 2)])
async def test_a_resume_may_change_the_number_of_shards(tmp_path: Path, before: int, after: int) -> None:
    run, snapshot = tmp_path / "run", tmp_path / "snapshot"
    snapshot.mkdir()
    first = MomentsService(config(before), run, seed=0)
    await first.fit_clusters(EMBEDDINGS)
    await first.next_batch(0, await submitted(first, groups_of(0)))
    await first.commit(0, 1)
    await first.snapshot(snapshot)
    straight = await first.next_batch(1, await submitted(first, groups_of(1)))
    await first.commit(1, 2)
    await first.close()
    assert last_incarnation(run) == 0
    second = MomentsService(config(after), run, seed=0, incarnation=1, snapshot=snapshot)
    again = await second.next_batch(1, await submitted(second, groups_of(1)))
    np.testing.assert_array_equal(again.advantages, straight.advantages)
    await second.commit(1, 2)
    assert second._history.state is not None
    assert bits(rebuild(config(after), run)) == bits(second._history.state)
    assert (snapshot / MOMENTS_FILE).exists() and last_incarnation(run) == 1
    await second.close()


async def test_every_advantage_is_explained_from_the_shards(tmp_path: Path) -> None:
    settings = config(3, "reinforce_pp")
    await numbers(tmp_path, settings)
    reader = RunLedger(tmp_path)
    folded = reader.batch(0, STEPS - 1)
    reader.close()
    for entry in folded[:4]:
        (found,) = explain(settings, tmp_path, entry.group.group_id)
        assert found.recorded == found.recomputed and found.group == entry.group

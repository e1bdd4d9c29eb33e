"""The moments service in-process: order of update, idempotence, durability, loss, replay."""

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moments_service.config import ClusterConfig, MomentsConfig
from moments_service.messages.groups import BlendedGroup, GroupStatus, ScoredGroup, Transcript
from moments_service.messages.table import GroupTable
from moments_service.service import MomentsService

pytestmark = pytest.mark.unit

EMBEDDINGS = np.eye(4, dtype=np.float32)
CONFIG = MomentsConfig(clusters=ClusterConfig(count=4))


def group(sequence: int, rewards: tuple[float | None, ...] = (0.0, 0.0), where: int = 0, **changes: Any) -> ScoredGroup:
    fields: dict[str, Any] = {
        "group_id": f"prompt{sequence}:0:0:0",
        "prompt_id": f"prompt{sequence}",
        "source": "sums",
        "sequence": sequence,
        "rewards": rewards,
        "errors": tuple(None if r is not None else "verifier: crashed" for r in rewards),
        "lengths": (3,) * len(rewards),
        "truncated": (False,) * len(rewards),
        "policy_versions": (0, 0),
        "embedding": EMBEDDINGS[where],
    }
    return ScoredGroup(**(fields | changes))


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[MomentsService]:
    service = MomentsService(CONFIG, tmp_path, seed=0)
    await service.fit_clusters(EMBEDDINGS)
    yield service
    await service.close()


def advantages(blended: tuple[BlendedGroup, ...]) -> list[tuple[float | None, ...]]:
    return [entry.advantages for entry in blended]


async def train_on(service: MomentsService, step: int, *groups: ScoredGroup) -> tuple[BlendedGroup, ...]:
    for scored in groups:
        await service.submit(scored, payload=scored.group_id)
    batch = await service.next_batch(step, len(groups))
    await service.commit(step, policy_version=step + 1)
    return batch.groups


async def test_the_first_batch_is_plain_group_statistics_and_later_ones_have_history(service: MomentsService) -> None:
    first = await train_on(service, 0, group(0, (1.0, 0.0)), group(1, (0.0, 0.0)))
    assert first[0].weight == 0.0 and first[1].advantages == (0.0, 0.0)
    second = await train_on(service, 1, group(2, (0.0, 0.0)))
    assert second[0].weight > 0.0
    assert all(a is not None and a < 0 for a in second[0].advantages)


async def test_a_batch_never_sees_itself(service: MomentsService) -> None:
    await train_on(service, 0, group(0, (1.0, 0.0)))
    before = (await service.stats())["clusters"]
    await service.submit(group(1, (1.0, 1.0)), payload="p")
    batch = await service.next_batch(1, 1)
    assert (await service.stats())["clusters"] == before
    await service.commit(1, policy_version=2)
    assert (await service.stats())["clusters"] != before
    assert batch.groups[0].baseline < 1.0


async def test_everything_sent_twice_counts_once(service: MomentsService) -> None:
    scored = group(0, (1.0, 0.0))
    await asyncio.gather(*(service.submit(scored, payload="p") for _ in range(5)))
    assert (await service.stats())["counts"]["groups"] == 1
    batch = await service.next_batch(0, 1)
    assert await service.next_batch(0, 1) is batch
    await service.commit(0, policy_version=1)
    after = await service.stats()
    await service.commit(0, policy_version=1)
    await service.submit(scored, payload="p")
    assert await service.stats() == after


async def test_batches_come_in_feed_order_whatever_order_groups_arrive_in(service: MomentsService) -> None:
    for sequence in (3, 1, 2, 0):
        await service.submit(group(sequence), payload=sequence)
    batch = await service.next_batch(0, 3)
    assert [entry.payload for entry in batch.groups] == [0, 1, 2]


async def test_next_batch_waits_for_enough_groups(service: MomentsService) -> None:
    waiting = asyncio.create_task(service.next_batch(0, 2))
    await service.submit(group(0), payload="p")
    assert not waiting.done()
    await service.submit(group(1), payload="p")
    assert len((await waiting).groups) == 2


async def test_an_error_is_never_a_reward(service: MomentsService) -> None:
    failed = group(0, (None, None), status=GroupStatus.ERROR)
    await service.submit(failed)
    trained = await train_on(service, 0, group(1, (1.0, None)))
    assert trained[0].advantages[1] is None
    stats = await service.stats()
    assert stats["counts"]["errors"] == 3
    # One reward in all: the errors are in no mean and in no count.
    assert sum(stats["clusters"]["mass"]) == pytest.approx(1.0)


async def test_a_lost_group_is_not_trained_on_and_still_counts_in_history(service: MomentsService) -> None:
    await service.submit(group(0, (1.0, 1.0)), payload="dies")
    assert await service.mark_lost((group(0).group_id, "never:seen:0:0")) == (group(0).group_id,)
    trained = await train_on(service, 0, group(1, (0.0, 0.0)))
    assert [entry.group.prompt_id for entry in trained] == ["prompt1"]
    assert sum((await service.stats())["clusters"]["mass"]) == pytest.approx(4.0)


async def test_a_withdrawn_batch_comes_back_without_what_was_lost(service: MomentsService) -> None:
    for sequence in range(2):
        await service.submit(group(sequence), payload=sequence)
    await service.next_batch(0, 2)
    await service.withdraw(0, (group(0).group_id,))
    await service.submit(group(2), payload=2)
    assert [entry.payload for entry in (await service.next_batch(0, 2)).groups] == [1, 2]


async def test_acknowledged_means_on_the_disk(service: MomentsService, tmp_path: Path) -> None:
    await service.submit(group(0, (1.0, None)), payload="p", transcript=Transcript("2+2=", ("4", "5")))
    with sqlite3.connect(f"file:{tmp_path}/ledger-000000.sqlite?mode=ro", uri=True) as reader:
        assert reader.execute("SELECT rewards, errors FROM groups").fetchall() == [
            ("[1.0,null]", '[null, "verifier: crashed"]')
        ]
        assert reader.execute("SELECT prompt, completions FROM transcripts").fetchall() == [("2+2=", '["4", "5"]')]


async def test_the_ledger_explains_every_advantage(service: MomentsService, tmp_path: Path) -> None:
    await train_on(service, 0, group(0, (1.0, 0.0)))
    trained = await train_on(service, 1, group(1, (1.0, 0.0)))
    with sqlite3.connect(tmp_path / "ledger-000000.sqlite") as reader:
        row = reader.execute("SELECT baseline, scale, weight FROM folds WHERE step = 1").fetchone()
    entry = trained[0]
    assert row == (entry.baseline, entry.scale, entry.weight)
    expected = [(r - entry.baseline) / (entry.scale + 1e-8) for r in entry.group.rewards if r is not None]
    assert entry.advantages == pytest.approx(expected)


async def test_a_service_that_died_comes_back_with_the_same_moments(tmp_path: Path) -> None:
    first = MomentsService(CONFIG, tmp_path, seed=0)
    await first.fit_clusters(EMBEDDINGS)
    for step in range(3):
        await train_on(first, step, group(2 * step, (1.0, 0.0)), group(2 * step + 1, (0.0, 0.0), where=1))
    expected = (await first.stats())["clusters"]
    # No close: the process is gone, the file is what it is.
    second = MomentsService(CONFIG, tmp_path, seed=0)
    assert (await second.stats())["clusters"] == expected
    assert (await second.stats())["last_step"] == 2
    await second.submit(group(0, (1.0, 0.0)), payload="sent again after the crash")
    assert (await second.stats())["ready"] == 0
    await first.close()
    await second.close()


async def test_what_a_dead_service_acknowledged_and_nobody_trained_on_still_counts(tmp_path: Path) -> None:
    first = MomentsService(CONFIG, tmp_path, seed=0)
    await first.fit_clusters(EMBEDDINGS)
    for sequence in range(3):
        await first.submit(group(sequence, (1.0, 0.0)), payload="gone with the service")
    second = MomentsService(CONFIG, tmp_path, seed=0)
    await second.submit(group(1, (1.0, 0.0)), payload="sent again by an actor that lives")
    assert (await second.stats())["counts"] == (await first.stats())["counts"]
    batch = await second.next_batch(0, 1)
    assert [entry.payload for entry in batch.groups] == ["sent again by an actor that lives"]
    await second.commit(0, policy_version=1)
    assert sum((await second.stats())["clusters"]["mass"]) == pytest.approx(6.0)
    await first.close()
    await second.close()


async def test_a_sender_that_gives_up_does_not_take_its_group_with_it(service: MomentsService) -> None:
    sending = asyncio.create_task(service.submit(group(0), payload="p"))
    await asyncio.sleep(0)
    sending.cancel()
    await service.submit(group(0), payload="p")
    assert (await service.stats())["ready"] == 1


async def test_a_table_is_taken_in_like_its_groups_one_by_one(service: MomentsService, tmp_path: Path) -> None:
    groups = [group(0, (1.0, None, 0.0)), group(1, (0.0,)), group(2, (None,), status=GroupStatus.ERROR)]
    other = MomentsService(CONFIG, tmp_path / "one by one", seed=0)
    await other.fit_clusters(EMBEDDINGS)
    await service.submit_table(GroupTable.of([*groups, groups[0]]), ["a", "b", None, "a"])
    for scored, payload in zip(groups, ("a", "b", None), strict=True):
        await other.submit(scored, payload)
    ours, theirs = await service.next_batch(0, 2), await other.next_batch(0, 2)
    assert ours.groups == theirs.groups and ours.metrics == theirs.metrics
    assert await service.stats() == await other.stats()
    await other.close()


async def test_a_resume_goes_on_from_the_snapshot_and_not_from_what_came_after(tmp_path: Path) -> None:
    run, snapshot = tmp_path / "run", tmp_path / "snapshot"
    snapshot.mkdir()
    first = MomentsService(CONFIG, run, seed=0)
    await first.fit_clusters(EMBEDDINGS)
    await train_on(first, 0, group(0, (1.0, 0.0)))
    await first.snapshot(snapshot)
    straight = await train_on(first, 1, group(1, (1.0, 1.0)))
    expected = (await first.stats())["clusters"]
    await first.close()
    second = MomentsService(CONFIG, run, seed=0, incarnation=1, snapshot=snapshot)
    again = await train_on(second, 1, group(1, (1.0, 1.0)))
    assert advantages(again) == advantages(straight)
    assert (await second.stats())["clusters"] == expected
    await second.close()


async def test_steps_out_of_order_are_refused(service: MomentsService) -> None:
    with pytest.raises(RuntimeError, match="no batch was made"):
        await service.commit(0, policy_version=1)
    await train_on(service, 0, group(0))
    with pytest.raises(RuntimeError, match="committed already"):
        await service.next_batch(0, 1)
    await service.submit(group(1), payload="p")
    await service.next_batch(1, 1)
    with pytest.raises(RuntimeError, match="is not committed"):
        await service.next_batch(2, 1)


async def test_metrics_hold_the_grpo_counterfactual(service: MomentsService) -> None:
    await train_on(service, 0, group(0, (1.0, 0.0)))
    for sequence, rewards in enumerate([(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 0.0)], start=1):
        await service.submit(group(sequence, rewards), payload="p")
    metrics = (await service.next_batch(1, 4)).metrics
    assert metrics["signal/grpo"] == 0.25
    assert metrics["signal/own"] == 1.0
    assert metrics["signal/rescued"] == 0.75 and metrics["signal/rescued_groups"] == 3
    # GRPO: (1 - .5) / sqrt(.5) in one group of four, nothing in the others.
    assert metrics["advantage/mean_abs_grpo"] == pytest.approx(0.5 / 0.5**0.5 / 4, rel=1e-5)
    assert metrics["advantage/mean_abs"] > metrics["advantage/mean_abs_grpo"] and metrics["advantage/clipped"] == 0
    assert metrics["group_size/mean"] == metrics["group_size/max"] == 2
    assert metrics["reward/pass_at_1"] == pytest.approx(3 / 8)
    assert metrics["pass_at_1/sums"] == pytest.approx(3 / 8)


@settings(max_examples=15, deadline=None)
@given(
    rewards=st.lists(
        st.tuples(st.integers(0, 3), st.tuples(*[st.sampled_from([0.0, 1.0, None])] * 3)), min_size=1, max_size=6
    ),
    order=st.randoms(),
)
def test_arrival_order_and_repeats_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, rewards: list[tuple[int, tuple[float | None, ...]]], order: Any
) -> None:
    groups = [
        group(i, values, where, status=GroupStatus.ERROR if values.count(None) == 3 else GroupStatus.SCORED)
        for i, (where, values) in enumerate(rewards)
    ]
    trainable = sum(scored.status is GroupStatus.SCORED for scored in groups)
    if trainable == 0:
        return

    async def run(arrivals: list[ScoredGroup]) -> tuple[Any, Any]:
        service = MomentsService(CONFIG, tmp_path_factory.mktemp("moments"), seed=0)
        await service.fit_clusters(EMBEDDINGS)
        for scored in arrivals:
            await service.submit(scored, payload="p")
        batch = await service.next_batch(0, trainable)
        await service.commit(0, policy_version=1)
        state = (await service.stats())["clusters"]
        await service.close()
        return advantages(batch.groups), state

    mixed = list(itertools.chain(groups, groups))
    order.shuffle(mixed)
    assert asyncio.run(run(groups)) == asyncio.run(run(mixed))


@pytest.mark.parametrize(
    ("rewards", "errors", "message"),
    [
        ((1.0,), (None, None), "differ in length"),
        ((None,), (None,), "a reward or an error"),
        ((1.0,), ("crashed",), "a reward or an error"),
        ((float("nan"),), (None,), "not finite"),
    ],
)
def test_headers_that_contradict_themselves_are_refused(rewards: Any, errors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group(0, rewards, errors=errors)

"""The moments service in-process: order of update, idempotence, durability, loss, replay."""

import asyncio
import itertools
import re
import shutil
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moments_service.clusters import PromptSet
from moments_service.config import BlendConfig, ClusterConfig, MomentsConfig
from moments_service.ledger import LedgerDamagedError, LedgerReader
from moments_service.ledger.schema import COLUMNS
from moments_service.messages.batch import Batch
from moments_service.messages.groups import GroupStatus, ScoredGroup, Transcript
from moments_service.messages.table import GroupTable
from moments_service.service import MomentsService

pytestmark = pytest.mark.unit

EMBEDDINGS = np.eye(4, dtype=np.float32)
PLACES = [(sequence, where) for where in range(4) for sequence in range(20)]


def prompt_id(sequence: int, where: int) -> str:
    return f"prompt{sequence}" + f"@{where}" * (where > 0)


PROMPTS = PromptSet(
    tuple(prompt_id(*place) for place in PLACES), ("sums",) * 80, ("",) * 80, np.repeat(EMBEDDINGS, 20, axis=0)
)
"""The prompt of every (place in the feed, cluster)."""
CONFIG = MomentsConfig(estimator=BlendConfig(), clusters=ClusterConfig(count=4))


def group(sequence: int, rewards: tuple[float | None, ...] = (0.0, 0.0), where: int = 0, **changes: Any) -> ScoredGroup:
    fields: dict[str, Any] = {
        "group_id": f"prompt{sequence}:0:0:0",
        "prompt_id": prompt_id(sequence, where),
        "source": "sums",
        "sequence": sequence,
        "rewards": rewards,
        "errors": tuple(None if r is not None else "verifier: crashed" for r in rewards),
        "lengths": (3,) * len(rewards),
        "truncated": (False,) * len(rewards),
        "policy_versions": (0, 0),
    }
    return ScoredGroup(**(fields | changes))


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[MomentsService]:
    service = MomentsService(CONFIG, tmp_path, seed=0)
    await service.fit_clusters(PROMPTS)
    yield service
    await service.close()


@dataclass(frozen=True, slots=True)
class Trained:
    """One row of a batch."""

    prompt_id: str
    rewards: tuple[float, ...]
    payload: Any
    cluster: int
    advantages: tuple[float | None, ...]
    baseline: float
    scale: float
    weight: float


def rows(batch: Batch) -> list[Trained]:
    def row(at: int) -> Trained:
        given = batch.advantages[at, : batch.table.sizes[at]].tolist()
        numbers = (float(column[at]) for column in (batch.baseline, batch.scale, batch.weight))
        values = tuple(None if value != value else value for value in given)
        rewards = tuple(reward for reward in batch.table.rewards[at].tolist() if reward == reward)
        prompt_id, cluster = batch.table.prompt_ids[at], int(batch.clusters[at])
        return Trained(prompt_id, rewards, batch.payloads[at], cluster, values, *numbers)

    return [row(at) for at in range(len(batch.table))]


def ids(*sequences: int) -> list[str]:
    return [group(sequence).group_id for sequence in sequences]


def advantages(trained: list[Trained]) -> list[tuple[float | None, ...]]:
    return [entry.advantages for entry in trained]


async def train_on(service: MomentsService, step: int, *groups: ScoredGroup) -> list[Trained]:
    for scored in groups:
        await service.submit(scored, payload=scored.group_id)
    batch = await service.draw(step, [scored.group_id for scored in groups])
    await service.commit(step, policy_version=step + 1)
    return rows(batch)


async def test_the_first_batch_is_plain_group_statistics_and_later_ones_have_history(service: MomentsService) -> None:
    first = await train_on(service, 0, group(0, (1.0, 0.0)), group(1, (0.0, 0.0)))
    assert first[0].weight == 0.0 and first[1].advantages == (0.0, 0.0)
    second = await train_on(service, 1, group(2, (0.0, 0.0)))
    assert second[0].weight > 0.0
    assert all(a is not None and a < 0 for a in second[0].advantages)


async def test_a_batch_never_sees_itself(service: MomentsService) -> None:
    await train_on(service, 0, group(0, (1.0, 0.0)))
    before = await service.cluster_stats()
    await service.submit(group(1, (1.0, 1.0)), payload="p")
    batch = await service.draw(1, ids(1))
    assert (await service.cluster_stats()) == before
    await service.commit(1, policy_version=2)
    assert (await service.cluster_stats()) != before
    assert rows(batch)[0].baseline < 1.0


async def test_everything_sent_twice_counts_once(service: MomentsService) -> None:
    scored = group(0, (1.0, 0.0))
    await asyncio.gather(*(service.submit(scored, payload="p") for _ in range(5)))
    assert (await service.stats())["counts"]["groups"] == 1
    batch = await service.draw(0, ids(0))
    assert await service.draw(0, ids(0)) is batch
    await service.commit(0, policy_version=1)
    after = await service.stats()
    await service.commit(0, policy_version=1)
    await service.submit(scored, payload="p")
    assert await service.stats() == after


async def test_batches_come_in_feed_order_whatever_order_groups_arrive_in(service: MomentsService) -> None:
    for sequence in (3, 1, 2, 0):
        await service.submit(group(sequence), payload=sequence)
    batch = await service.draw(0, ids(2, 0, 1))
    assert [entry.payload for entry in rows(batch)] == [0, 1, 2]


async def test_two_callers_of_one_step_get_the_same_batch(service: MomentsService) -> None:
    for sequence in range(4):
        await service.submit(group(sequence, (1.0, 0.0)), payload=sequence)
    first, second = await asyncio.gather(service.draw(0, ids(0, 1)), service.draw(0, ids(1, 0)))
    assert first is second and first.group_ids == tuple(ids(0, 1))
    assert (await service.stats())["ready"] == 2


async def test_a_caller_that_gave_up_and_tries_again_leaves_nothing_open(
    service: MomentsService, tmp_path: Path
) -> None:
    for sequence in range(2):
        await service.submit(group(sequence, (1.0, 0.0)), payload=sequence)
    asked = asyncio.create_task(service.draw(0, ids(0, 1)))
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await service.draw(0, ids(0, 1))
    await service.commit(0, policy_version=1)
    assert (await service.stats())["ready"] == 0 and not service._intake._open
    with LedgerReader(tmp_path) as reader:
        assert reader.unfolded(0) == [] and len(reader.batch(0, 0)) == 2


async def test_other_groups_for_a_step_that_is_drawn_are_refused(service: MomentsService) -> None:
    for sequence in range(3):
        await service.submit(group(sequence), payload=sequence)
    await service.draw(0, ids(0, 1))
    with pytest.raises(RuntimeError, match="other groups: prompt1:0:0:0, prompt2:0:0:0"):
        await service.draw(0, ids(0, 2))
    with pytest.raises(RuntimeError, match="step 0 is not committed"):
        await service.draw(1, ids(2))
    assert (await service.stats())["ready"] == 1


async def test_a_group_that_is_not_ready_is_named_and_nothing_is_drawn(service: MomentsService) -> None:
    await service.submit(group(0), payload=0)
    await service.submit(group(1, (None, None), status=GroupStatus.ERROR))
    for asked, named in (
        (ids(0, 1), "prompt1:0:0:0"),
        (ids(0, 7), "prompt7:0:0:0"),
        (ids(0, 0), "distinct"),
        ([], "asks"),
    ):
        with pytest.raises(RuntimeError, match=named):
            await service.draw(0, asked)
    assert rows(await service.draw(0, ids(0)))[0].payload == 0


async def test_a_group_that_was_given_up_before_it_came_is_closed_when_it_comes(service: MomentsService) -> None:
    assert await service.mark_lost(("prompt0:0:0:0",)) == ()
    await service.submit(group(0, (1.0, 1.0)), payload="late")
    stats = await service.stats()
    assert stats["ready"] == 0 and stats["counts"]["lost"] == 1
    await train_on(service, 0, group(1, (0.0, 0.0)))
    assert sum((await service.cluster_stats())["mass"]) == pytest.approx(4.0)


async def test_a_prompt_that_nobody_told_of_is_refused_by_name_until_it_is(service: MomentsService) -> None:
    stranger = group(0, (1.0, 0.0), prompt_id="stranger")
    with pytest.raises(ValueError, match=r"prompt0:0:0:0.*stranger.*remember"):
        await service.submit(stranger, payload="p")
    await service.remember(PromptSet(("stranger",), ("sums",), ("",), EMBEDDINGS[2:3]))
    (trained,) = await train_on(service, 0, stranger)
    assert trained.cluster == (await service.assign(EMBEDDINGS[2:3]))[0]
    assert len((await service.expected_signal()).clusters) == len(PROMPTS)


async def test_a_prompt_unlike_any_gets_a_cluster_of_its_own_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    service = MomentsService(CONFIG, tmp_path, seed=0)
    await service.fit_clusters(replace(PROMPTS, embeddings=np.eye(80, 90, dtype=np.float32)))
    await service.submit(group(0, (1.0, 0.0)), payload="p")
    await service.draw(0, ids(0))
    before = len((await service.cluster_stats())["mean"])
    new = PromptSet(("new",), ("sums",), ("",), np.eye(90, dtype=np.float32)[-1:])
    assert await service.remember(new) == before + 1
    await service.commit(0, policy_version=1)
    expected = await service.cluster_stats()
    again = MomentsService(CONFIG, tmp_path, seed=0)
    assert await again.cluster_stats() == expected
    await service.close()
    await again.close()


async def test_an_error_is_never_a_reward(service: MomentsService) -> None:
    failed = group(0, (None, None), status=GroupStatus.ERROR)
    await service.submit(failed)
    trained = await train_on(service, 0, group(1, (1.0, None)))
    assert trained[0].advantages[1] is None
    stats = await service.stats()
    assert stats["counts"]["errors"] == 3
    # One reward in all: the errors are in no mean and in no count.
    assert sum((await service.cluster_stats())["mass"]) == pytest.approx(1.0)


async def test_a_lost_group_is_not_trained_on_and_still_counts_in_history(service: MomentsService) -> None:
    await service.submit(group(0, (1.0, 1.0)), payload="dies")
    assert await service.mark_lost((group(0).group_id, "never:seen:0:0")) == (group(0).group_id,)
    trained = await train_on(service, 0, group(1, (0.0, 0.0)))
    assert [entry.prompt_id for entry in trained] == ["prompt1"]
    assert sum((await service.cluster_stats())["mass"]) == pytest.approx(4.0)


async def test_a_withdrawn_batch_comes_back_without_what_was_lost(service: MomentsService) -> None:
    for sequence in range(2):
        await service.submit(group(sequence), payload=sequence)
    await service.draw(0, ids(0, 1))
    await service.withdraw(0, (group(0).group_id,))
    await service.submit(group(2), payload=2)
    with pytest.raises(RuntimeError, match="not ready: prompt0:0:0:0"):
        await service.draw(0, ids(0, 1))
    assert [entry.payload for entry in rows(await service.draw(0, ids(1, 2)))] == [1, 2]


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
    expected = [(r - entry.baseline) / (entry.scale + 1e-8) for r in entry.rewards]
    assert entry.advantages == pytest.approx(expected)


async def test_a_service_that_died_comes_back_with_the_same_moments(tmp_path: Path) -> None:
    first = MomentsService(CONFIG, tmp_path, seed=0)
    await first.fit_clusters(PROMPTS)
    for step in range(3):
        await train_on(first, step, group(2 * step, (1.0, 0.0)), group(2 * step + 1, (0.0, 0.0), where=1))
    expected = await first.cluster_stats()
    # No close: the process is gone, the file is what it is.
    second = MomentsService(CONFIG, tmp_path, seed=0)
    assert (await second.cluster_stats()) == expected
    assert (await second.stats())["last_step"] == 2
    await second.fit_clusters(PROMPTS)
    await second.submit(group(0, (1.0, 0.0)), payload="sent again after the crash")
    assert (await second.stats())["ready"] == 0
    await first.close()
    await second.close()


async def test_what_a_dead_service_acknowledged_and_nobody_trained_on_still_counts(tmp_path: Path) -> None:
    first = MomentsService(CONFIG, tmp_path, seed=0)
    await first.fit_clusters(PROMPTS)
    for sequence in range(3):
        await first.submit(group(sequence, (1.0, 0.0)), payload="gone with the service")
    second = MomentsService(CONFIG, tmp_path, seed=0)
    await second.fit_clusters(PROMPTS)
    again = group(1, (1.0, 0.0), prompt_tokens=7)
    await second.submit(again, payload="sent again by an actor that lives")
    assert (await second.stats())["counts"] == (await first.stats())["counts"]
    batch = await second.draw(0, ids(1))
    assert [entry.payload for entry in rows(batch)] == ["sent again by an actor that lives"]
    assert batch.table.prompt_tokens.tolist() == [7]
    await second.commit(0, policy_version=1)
    assert sum((await second.cluster_stats())["mass"]) == pytest.approx(6.0)
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
    await other.fit_clusters(PROMPTS)
    await service.submit_table(GroupTable.of([*groups, groups[0]]), ["a", "b", None, "a"])
    for scored, payload in zip(groups, ("a", "b", None), strict=True):
        await other.submit(scored, payload)
    ours, theirs = await service.draw(0, ids(0, 1)), await other.draw(0, ids(0, 1))
    assert rows(ours) == rows(theirs) and ours.metrics == theirs.metrics
    assert await service.stats() == await other.stats()
    await other.close()


async def test_a_resume_goes_on_from_the_snapshot_and_not_from_what_came_after(tmp_path: Path) -> None:
    run, snapshot = tmp_path / "run", tmp_path / "snapshot"
    snapshot.mkdir()
    first = MomentsService(CONFIG, run, seed=0)
    await first.fit_clusters(PROMPTS)
    await train_on(first, 0, group(0, (1.0, 0.0)))
    await first.snapshot(snapshot)
    straight = await train_on(first, 1, group(1, (1.0, 1.0)))
    expected = await first.cluster_stats()
    await first.close()
    second = MomentsService(CONFIG, run, seed=0, incarnation=1, snapshot=snapshot)
    await second.fit_clusters(PROMPTS)
    again = await train_on(second, 1, group(1, (1.0, 1.0)))
    assert advantages(again) == advantages(straight)
    assert (await second.cluster_stats()) == expected
    await second.close()


@pytest.mark.parametrize("loss", ["the log", "the end of the file", "another run's ledger"])
async def test_a_ledger_that_lost_what_the_snapshot_knows_is_refused(tmp_path: Path, loss: str) -> None:
    run, snapshot = tmp_path / "run", tmp_path / "snapshot"
    snapshot.mkdir()
    service = MomentsService(CONFIG, run, seed=0)
    await service.fit_clusters(PROMPTS)
    for step in range(4):
        await train_on(service, step, group(step, (1.0, 0.0)))
    await service.snapshot(snapshot)
    path = run / "ledger-000000.sqlite"
    match = "is lost"
    if loss == "the log":
        dead = tmp_path / "dead"
        shutil.copytree(run, dead)
        (dead / f"{path.name}-wal").unlink()
        run = dead
    elif loss == "the end of the file":
        await service.close()
        path.chmod(0o644)
        with sqlite3.connect(path) as connection:
            for table in (*COLUMNS, "seals"):
                connection.execute(f"DELETE FROM {table} WHERE seal > 4")
    else:
        run, match = tmp_path / "other", "of another run"
        other = MomentsService(CONFIG, run, seed=0)
        await other.fit_clusters(PROMPTS)
        for step in range(5):
            await train_on(other, step, group(step, (0.0, 0.0)))
        await other.close()
    with pytest.raises(LedgerDamagedError, match=match):
        MomentsService(CONFIG, run, seed=0, incarnation=1, snapshot=snapshot)


async def test_steps_out_of_order_are_refused(service: MomentsService) -> None:
    with pytest.raises(RuntimeError, match="no batch was made"):
        await service.commit(0, policy_version=1)
    await train_on(service, 0, group(0))
    with pytest.raises(RuntimeError, match="committed already"):
        await service.draw(0, ids(0))
    await service.submit(group(1), payload="p")
    await service.draw(1, ids(1))
    with pytest.raises(RuntimeError, match="is not committed"):
        await service.draw(2, ids(1))


async def test_a_batch_says_that_its_advantages_exploded(tmp_path: Path) -> None:
    config = MomentsConfig(estimator=BlendConfig(variant="paper"), clusters=ClusterConfig(count=4))
    service = MomentsService(config, tmp_path, seed=0)
    await service.fit_clusters(PROMPTS)
    for step in range(18):
        await train_on(service, step, group(step, (-1.0, -1.0)))
    await service.submit(group(18, (1.0, 1.0)), payload="p")
    batch = await service.draw(18, ids(18))
    await service.close()
    assert [alarm.kind for alarm in batch.alarms][-1] == "advantages exploded"
    assert batch.metrics["advantage/max_abs"] == np.abs(batch.advantages).max() > 1e6


async def test_metrics_hold_the_grpo_counterfactual(service: MomentsService) -> None:
    await train_on(service, 0, group(0, (1.0, 0.0)))
    for sequence, rewards in enumerate([(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 0.0)], start=1):
        await service.submit(group(sequence, rewards), payload="p")
    metrics = (await service.draw(1, ids(1, 2, 3, 4))).metrics
    assert metrics["signal/grpo"] == 0.25
    assert metrics["signal/own"] == 1.0
    assert metrics["signal/rescued"] == 0.75 and metrics["signal/rescued_groups"] == 3
    # GRPO: (1 - .5) / sqrt(.5) in one group of four, nothing in the others.
    assert metrics["advantage/mean_abs_grpo"] == pytest.approx(0.5 / 0.5**0.5 / 4, rel=1e-5)
    assert metrics["advantage/mean_abs"] > metrics["advantage/mean_abs_grpo"] and metrics["advantage/clipped"] == 0
    assert metrics["advantage/mean_abs"] < metrics["advantage/max_abs"] < 5
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
    if not any(scored.status is GroupStatus.SCORED for scored in groups):
        return

    async def run(arrivals: list[ScoredGroup]) -> tuple[Any, Any]:
        service = MomentsService(CONFIG, tmp_path_factory.mktemp("moments"), seed=0)
        await service.fit_clusters(PROMPTS)
        for scored in arrivals:
            await service.submit(scored, payload="p")
        scored = [entry.group_id for entry in groups if entry.status is GroupStatus.SCORED]
        batch = await service.draw(0, scored)
        await service.commit(0, policy_version=1)
        state = await service.cluster_stats()
        await service.close()
        return advantages(rows(batch)), state

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


@pytest.mark.parametrize("reward", [1e300, -1e19])
def test_a_reward_that_no_cluster_can_remember_is_refused(reward: float) -> None:
    table = GroupTable.of([group(0, (1.0, 0.0)), group(1, (0.0, reward))])
    with pytest.raises(ValueError, match=re.escape(f"reward {reward} of completion 1 is beyond")):
        table.check()

"""Sampling when rollout actors die, hang or are slow: what is lost, what is tried again. The fleet is a fake that injects faults."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors.prompts.feed import PromptFeed
from actors.prompts.prompt import Prompt, Ticket
from actors.rollout.actor import Receipt
from deploy.run.remote import Remote
from deploy.run.sampling import TIMED_OUT, Sampler
from deploy.run.work import WorkBuffer
from moments_service.messages.groups import GroupStatus
from moments_service.messages.table import GroupTable

pytestmark = pytest.mark.unit

PROMPTS = [
    Prompt(prompt_id=f"p{i}", source="sums", text=f"{i}+1=", answer=str(i + 1), verifier="exact") for i in range(20)
]


class FaultyFleet:
    """Two actors whose rollouts end when the test says so."""

    def __init__(self) -> None:
        self.running: dict[str, tuple[int, asyncio.Future[Receipt]]] = {}
        self.serves = [True, True]
        self.dead: set[int] = set()
        self.alive = asyncio.Event()
        self.load = [0, 0]
        self.revived = asyncio.Event()
        self.probed: list[int] = []

    def pick(self) -> int | None:
        serving = [actor for actor in (0, 1) if self.serves[actor] and actor not in self.probed]
        if not serving:
            return None
        actor = min(serving, key=lambda candidate: self.load[candidate])
        self.load[actor] += 1
        return actor

    def done(self, actor: int) -> None:
        self.load[actor] -= 1

    def serving(self, actor: int) -> bool:
        return self.serves[actor]

    def suspend(self, actor: int) -> None:
        self.serves[actor] = False

    def doubt(self, actor: int) -> bool:
        first = actor not in self.probed
        if first:
            self.probed.append(actor)
        return first

    async def answers(self, actor: int) -> bool:
        await self.alive.wait()
        self.probed.remove(actor)
        return actor not in self.dead

    async def revive(self, actor: int) -> None:
        await self.revived.wait()
        self.dead.discard(actor)
        self.serves[actor] = True

    def log_revival(self, actor: int, seconds: float) -> None: ...

    def rollout(self, actor: int, ticket: Ticket, moments: Any) -> asyncio.Future[Receipt]:
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        if actor in self.dead:
            future.set_exception(RayActorError())
            return future
        self.running[ticket.group_id] = (actor, future)
        return future

    def finish(
        self,
        group_id: str,
        status: GroupStatus = GroupStatus.SCORED,
        uniform: bool = False,
        observed: dict[str, tuple[float, ...]] | None = None,
    ) -> None:
        _, future = self.running.pop(group_id)
        timings = {"generate_s": 0.1, "score_s": 0.1, "wait_s": 0.3, "verdicts": 2.0, "tokens": 3.0}
        future.set_result(Receipt(group_id, status, timings, uniform, observed or {}))

    def kill(self, actor: int) -> list[str]:
        self.dead.add(actor)
        died = [group_id for group_id, (owner, _) in self.running.items() if owner == actor]
        for group_id in died:
            self.running.pop(group_id)[1].set_exception(RayActorError())
        return died


class Moments:
    """An actor that remembers what it was told."""

    def __init__(self) -> None:
        self.lost: list[str] = []
        self.submitted: list[GroupTable] = []
        self.mark_lost = self._method(self.lost.extend)
        self.submit_table = self._method(lambda table, payloads: self.submitted.append(table))

    def _method(self, call: Any) -> Any:
        async def remote(*arguments: Any) -> None:
            call(*arguments)

        return type("Method", (), {"remote": staticmethod(remote)})


@pytest.fixture
def fleet() -> FaultyFleet:
    return FaultyFleet()


@pytest.fixture
def moments() -> Moments:
    return Moments()


def sampler(
    fleet: FaultyFleet,
    moments: Moments,
    timeout_s: float = 5.0,
    deadline_s: float = 5.0,
    generation_batches: int = 1,
) -> tuple[WorkBuffer, Sampler]:
    feed = PromptFeed(PROMPTS, 0, group_size=2)
    work = WorkBuffer(feed, batch_groups=4, max_staleness=0, generation_batches=generation_batches)
    sampling = Sampler(work, fleet, Remote(moments, "the moments service", deadline_s), timeout_s, attempts=2)  # type: ignore[arg-type]
    work.fill()
    sampling.pump()
    return work, sampling


async def until(happened: Callable[[], bool]) -> None:
    """Wait for what a real deadline brings about."""
    async with asyncio.timeout(20):
        while not happened():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(30):
        await asyncio.sleep(0)


async def test_a_group_without_any_reward_makes_room_for_another_prompt(fleet: FaultyFleet, moments: Moments) -> None:
    work, sampling = sampler(fleet, moments)
    await settle()
    failed, *others = list(fleet.running)
    fleet.finish(failed, GroupStatus.ERROR)
    await settle()
    assert len(fleet.running) == 4
    for group_id in list(fleet.running):
        fleet.finish(group_id)
    await settle()
    assert set(others) < set(await work.take(0))
    await sampling.close()


async def test_a_tally_says_how_fast_verifiers_are_and_how_long_groups_wait(
    fleet: FaultyFleet, moments: Moments
) -> None:
    _, sampling = sampler(fleet, moments)
    nothing = {"verifier/verdicts_per_s": 0.0, "verifier/seconds": 0.0, "verifier/waited": 0.0}
    assert sampling.take_tally().verifiers(2.0) == nothing
    await settle()
    for group_id in list(fleet.running):  # four of them
        fleet.finish(group_id)
    await settle()
    found = sampling.take_tally().verifiers(2.0)
    assert found == pytest.approx({"verifier/verdicts_per_s": 4.0, "verifier/seconds": 0.05, "verifier/waited": 0.75})
    await sampling.close()


async def test_prompts_of_a_dead_actor_are_sampled_again_under_the_next_attempt(
    fleet: FaultyFleet, moments: Moments
) -> None:
    work, sampling = sampler(fleet, moments)
    await settle()
    scored = next(group_id for group_id, (actor, _) in fleet.running.items() if actor == 0)
    fleet.finish(scored)
    await settle()
    died = fleet.kill(0)
    await settle()
    # Actor 1 takes over everything that actor 0 had: what was in flight, and what was scored and died with it.
    expected = {f"{group_id[:-1]}1" for group_id in (*died, scored)}
    assert expected <= set(fleet.running)
    assert {actor for actor, _ in fleet.running.values()} == {1}
    assert set(moments.lost) == {*died, scored}
    for group_id in list(fleet.running):
        fleet.finish(group_id)
    await settle()
    assert len(await work.take(0)) == 4
    assert sampling.take_tally().redispatched == len(expected)
    await sampling.close()


async def test_with_no_actor_left_groups_wait_for_a_restart(fleet: FaultyFleet, moments: Moments) -> None:
    _, sampling = sampler(fleet, moments)
    await settle()
    fleet.kill(0)
    fleet.kill(1)
    await settle()
    assert not fleet.running
    fleet.revived.set()
    await settle()
    assert len(fleet.running) == 4 and not any(group_id.endswith(":0") for group_id in fleet.running)
    await sampling.close()


async def test_an_error_of_a_rollout_reaches_whoever_waits(fleet: FaultyFleet, moments: Moments) -> None:
    work, sampling = sampler(fleet, moments)
    await settle()
    next(iter(fleet.running.values()))[1].set_exception(ValueError("prompt too long"))
    with pytest.raises(ValueError, match="prompt too long"):
        await work.take(0)
    await sampling.close()


async def test_a_timeout_inside_a_rollout_is_not_taken_for_a_slow_group(fleet: FaultyFleet, moments: Moments) -> None:
    work, sampling = sampler(fleet, moments)
    await settle()
    next(iter(fleet.running.values()))[1].set_exception(TimeoutError("of its own"))
    with pytest.raises(TimeoutError, match="of its own"):
        await work.take(0)
    assert not fleet.probed
    await sampling.close()


async def test_a_group_that_is_too_slow_is_sampled_again_and_given_up_in_the_end(
    fleet: FaultyFleet, moments: Moments
) -> None:
    work, sampling = sampler(fleet, moments, timeout_s=0.05)
    await settle()
    first = list(fleet.running)
    for group_id in first[1:]:
        fleet.finish(group_id)
    fleet.alive.set()
    taking = asyncio.create_task(work.take(0))
    slow, again = first[0], f"{first[0][:-1]}1"
    await until(lambda: again in fleet.running)
    assert moments.lost == [slow]
    # Its second attempt is too slow as well: it is closed, history hears of it, and the next prompt takes its place.
    await until(lambda: bool(moments.submitted))
    (table,) = moments.submitted
    assert table.errors == ((TIMED_OUT, TIMED_OUT),) and table.prompt_ids == (slow.split(":")[0],)
    await settle()
    fresh = next(group_id for group_id in fleet.running if group_id not in (*first, again))
    fleet.finish(fresh)
    assert set(await taking) == {*first[1:], fresh}
    await sampling.close()


async def test_an_actor_that_hangs_dies_of_it_and_the_run_goes_on(fleet: FaultyFleet, moments: Moments) -> None:
    work, sampling = sampler(fleet, moments, timeout_s=0.05)
    await settle()
    hung = [group_id for group_id, (actor, _) in fleet.running.items() if actor == 0]
    for group_id in set(fleet.running) - set(hung):
        fleet.finish(group_id)
    fleet.dead.add(0)
    fleet.alive.set()
    again = {f"{group_id[:-1]}1" for group_id in hung}
    await until(lambda: again <= set(fleet.running))
    assert not fleet.serving(0) and {fleet.running[group_id][0] for group_id in again} == {1}
    for group_id in again:
        fleet.finish(group_id)
    assert len(await work.take(0)) == 4
    await sampling.close()


async def test_a_moments_service_that_hangs_over_lost_groups_is_named(fleet: FaultyFleet, moments: Moments) -> None:
    async def never(group_ids: tuple[str, ...]) -> None:
        await asyncio.get_running_loop().create_future()

    moments.mark_lost = type("Method", (), {"remote": staticmethod(never)})
    work, sampling = sampler(fleet, moments, deadline_s=0.05)
    await settle()
    fleet.kill(0)
    with pytest.raises(TimeoutError, match=r"the moments service did not answer mark_lost in 0.05 s"):
        await work.take(0)
    await sampling.close()


@pytest.mark.parametrize("generation_batches", [1, 2])
async def test_a_group_of_equal_rewards_is_passed_by_where_more_may_be_sampled(
    fleet: FaultyFleet, moments: Moments, generation_batches: int
) -> None:
    work, sampling = sampler(fleet, moments, generation_batches=generation_batches)
    taking = asyncio.create_task(work.take(0))
    await until(lambda: len(fleet.running) == 4)
    first, *others = fleet.running
    fleet.finish(first, uniform=True)
    for group_id in others:
        fleet.finish(group_id)
    if generation_batches == 1:
        assert await taking == (first, *others)
        assert not moments.lost
    else:
        # Its rewards stay with the moments service; the next prompt is sampled in its place.
        await until(lambda: len(fleet.running) == 1)
        (next_one,) = fleet.running
        assert moments.lost == [first] and not taking.done()
        fleet.finish(next_one)
        assert await taking == (*others, next_one)
    assert sampling.take_tally().passed_by == generation_batches - 1
    await sampling.close()


async def test_what_a_rollout_actor_saw_for_shaping_comes_with_the_batch(fleet: FaultyFleet, moments: Moments) -> None:
    work, sampling = sampler(fleet, moments)
    await settle()
    groups = list(fleet.running)
    for number, group_id in enumerate(groups):
        fleet.finish(group_id, observed={"arlcp": (float(number), 2.0)})
    await settle()
    await work.take(0)
    assert work.observed(0) == {group: {"arlcp": (float(number), 2.0)} for number, group in enumerate(groups)}
    await sampling.close()

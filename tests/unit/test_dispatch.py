"""The dispatcher when rollout actors die: slots, lost groups, next attempts. The fleet is a fake that injects faults."""

import asyncio
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError

from actors.prompts.feed import PromptFeed
from actors.prompts.prompt import Prompt, Ticket
from actors.rollout.actor import Receipt
from deploy.run.dispatch import Dispatcher
from moments_service.messages.groups import GroupStatus
from moments_service.moments.expected_signal import ExpectedSignal

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
        self.load = [0, 0]
        self.revived = asyncio.Event()
        self.most_at_once = 0

    def pick(self) -> int | None:
        serving = [actor for actor in (0, 1) if self.serves[actor]]
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
        self.most_at_once = max(self.most_at_once, len(self.running))
        return future

    def finish(self, group_id: str, status: GroupStatus = GroupStatus.SCORED) -> None:
        _, future = self.running.pop(group_id)
        future.set_result(Receipt(group_id, status, {"generate_s": 0.1, "score_s": 0.1, "tokens": 3.0}))

    def kill(self, actor: int) -> list[str]:
        self.dead.add(actor)
        died = [group_id for group_id, (owner, _) in self.running.items() if owner == actor]
        for group_id in died:
            self.running.pop(group_id)[1].set_exception(RayActorError())
        return died


class Moments:
    """Answers `mark_lost` as the service does: only what it holds."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.mark_lost = self

    async def remote(self, group_ids: tuple[str, ...]) -> tuple[str, ...]:
        lost = tuple(group_id for group_id in group_ids if group_id in self.held)
        self.held.difference_update(lost)
        return lost


@pytest.fixture
def fleet() -> FaultyFleet:
    return FaultyFleet()


@pytest.fixture
def moments() -> Moments:
    return Moments()


@pytest.fixture
def dispatcher(fleet: FaultyFleet, moments: Moments) -> Dispatcher:
    embeddings = {prompt.prompt_id: np.zeros(2, dtype=np.float32) for prompt in PROMPTS}
    return Dispatcher(PromptFeed(PROMPTS, 0, group_size=2), fleet, moments, embeddings, slots=4, group_timeout_s=5)  # type: ignore[arg-type]


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_slots_bound_what_is_in_flight_until_a_group_was_trained_on(
    dispatcher: Dispatcher, fleet: FaultyFleet
) -> None:
    gathering = asyncio.create_task(dispatcher.gather(4))
    await settle()
    first = list(fleet.running)
    assert len(first) == 4
    for group_id in first:
        fleet.finish(group_id)
    await gathering
    assert not fleet.running
    dispatcher.release(first[:3])
    await settle()
    assert len(fleet.running) == 3 and fleet.most_at_once == 4
    await dispatcher.close()


async def test_a_group_without_any_reward_frees_its_slot_for_another_prompt(
    dispatcher: Dispatcher, fleet: FaultyFleet
) -> None:
    gathering = asyncio.create_task(dispatcher.gather(4))
    await settle()
    failed, *others = list(fleet.running)
    fleet.finish(failed, GroupStatus.ERROR)
    await settle()
    assert len(fleet.running) == 4 and not gathering.done()
    for group_id in [*others, *(set(fleet.running) - set(others))]:
        fleet.finish(group_id)
    await gathering
    await dispatcher.close()


async def test_a_verifier_that_fails_for_a_whole_batch_is_told_of_and_not_asked_for_ever(
    dispatcher: Dispatcher, fleet: FaultyFleet
) -> None:
    gathering = asyncio.create_task(dispatcher.gather(4))
    for _ in range(4):
        await settle()
        fleet.finish(next(iter(fleet.running)), GroupStatus.ERROR)
    assert await gathering is False
    # Whoever goes on is asked again after as many more failures, and only then.
    gathering = asyncio.create_task(dispatcher.gather(4))
    await settle()
    for group_id in list(fleet.running):
        fleet.finish(group_id)
    assert await gathering is True
    await dispatcher.close()


async def test_prompts_of_a_dead_actor_are_sampled_again_under_the_next_attempt(
    dispatcher: Dispatcher, fleet: FaultyFleet, moments: Moments
) -> None:
    gathering = asyncio.create_task(dispatcher.gather(4))
    await settle()
    scored = next(group_id for group_id, (actor, _) in fleet.running.items() if actor == 0)
    fleet.finish(scored)
    moments.held.add(scored)
    await settle()
    died = fleet.kill(0)
    await settle()
    # Actor 1 takes over everything that actor 0 had: what was in flight, and what was scored and died with it.
    expected = {group_id[: -len("0")] + "1" for group_id in (*died, scored)}
    assert expected <= set(fleet.running)
    assert {actor for actor, _ in fleet.running.values()} == {1}
    assert len(fleet.running) == 4 and moments.held == set()
    for group_id in list(fleet.running):
        fleet.finish(group_id)
    await gathering
    assert dispatcher.take_tally().redispatched == len(expected)
    await dispatcher.close()


async def test_with_no_actor_left_the_dispatcher_waits_for_a_restart(
    dispatcher: Dispatcher, fleet: FaultyFleet
) -> None:
    gathering = asyncio.create_task(dispatcher.gather(4))
    await settle()
    fleet.kill(0)
    fleet.kill(1)
    await settle()
    assert not fleet.running and not gathering.done()
    fleet.revived.set()
    await settle()
    assert len(fleet.running) == 4
    for group_id in list(fleet.running):
        assert not group_id.endswith(":0")
        fleet.finish(group_id)
    await gathering
    await dispatcher.close()


async def test_an_error_of_a_rollout_reaches_whoever_waits(dispatcher: Dispatcher, fleet: FaultyFleet) -> None:
    gathering = asyncio.create_task(dispatcher.gather(4))
    await settle()
    next(iter(fleet.running.values()))[1].set_exception(ValueError("prompt too long"))
    with pytest.raises(ValueError, match="prompt too long"):
        await gathering
    await dispatcher.close()


async def test_a_checkpoint_carries_every_ticket_that_was_not_trained_on(
    dispatcher: Dispatcher, fleet: FaultyFleet
) -> None:
    gathering = asyncio.create_task(dispatcher.gather(4))
    await settle()
    admitted = set(fleet.running)
    fleet.finish(next(iter(admitted)))
    await settle()
    assert {ticket.group_id for ticket in dispatcher.unfinished()} == admitted
    gathering.cancel()
    await dispatcher.close()


async def test_a_batch_has_its_completions_between_its_groups_and_each_attempt_keeps_its_share(
    fleet: FaultyFleet, moments: Moments
) -> None:
    feed = PromptFeed(PROMPTS, 0, group_size=4, max_group_size=8)
    clusters = np.arange(len(PROMPTS)) % 2
    feed.learn(ExpectedSignal(clusters, np.array([0.25, 0.01]), np.array([0.25, 0.25])))
    dispatcher = Dispatcher(feed, fleet, moments, {}, slots=4, group_timeout_s=5)  # type: ignore[arg-type]
    gathering = asyncio.create_task(dispatcher.gather(4))
    await settle()
    first = {ticket.group_id: ticket for ticket in dispatcher.unfinished()}
    assert sum(ticket.group_size for ticket in first.values()) == 16
    assert len({ticket.group_size for ticket in first.values()}) > 1
    # A group without any reward makes room for one of the usual size; a lost one is sampled again as it was.
    failed, *others = list(fleet.running)
    fleet.finish(failed, GroupStatus.ERROR)
    await settle()
    (replacement,) = [ticket for ticket in dispatcher.unfinished() if ticket.group_id not in first]
    assert replacement.group_size == 4
    for group_id in [*others, replacement.group_id]:
        fleet.finish(group_id)
    await gathering
    dispatcher.lose([others[0]])
    await settle()
    (again,) = [ticket for ticket in dispatcher.unfinished() if ticket.attempt == 1]
    assert again.group_size == first[others[0]].group_size
    await dispatcher.close()


async def test_restored_tickets_go_first_and_the_hand_fills_what_is_left(
    fleet: FaultyFleet, moments: Moments, dispatcher: Dispatcher
) -> None:
    saved = PromptFeed(PROMPTS, 7, group_size=6).deal(3)
    dispatcher.restore(saved)
    gathering = asyncio.create_task(dispatcher.gather(4))
    await settle()
    assert set(fleet.running) > {ticket.group_id for ticket in saved} and len(fleet.running) == 4
    assert sorted(ticket.group_size for ticket in dispatcher.unfinished()) == [2, 6, 6, 6]
    gathering.cancel()
    await dispatcher.close()

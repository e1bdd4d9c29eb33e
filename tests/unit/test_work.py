"""The life of a group: slots, strict feed order, staleness that is bounded by construction, what is lost and sampled again."""

import asyncio
import heapq
import random

import numpy as np
import pytest

from actors.prompts.feed import PromptFeed
from actors.prompts.prompt import Prompt
from deploy.run.work import NothingScoredError, WorkBuffer
from moments_service.moments.expected_signal import ExpectedSignal

pytestmark = pytest.mark.unit

PROMPTS = [
    Prompt(prompt_id=f"p{i}", source="sums", text=f"{i}+1=", answer=str(i + 1), verifier="exact") for i in range(20)
]


def feed(**settings: object) -> PromptFeed:
    return PromptFeed(PROMPTS, 0, **{"group_size": 2, **settings})  # type: ignore[arg-type]


def filled(max_staleness: int = 0) -> WorkBuffer:
    work = WorkBuffer(feed(), batch_groups=4, max_staleness=max_staleness)
    work.fill()
    return work


def send(work: WorkBuffer, actor: int = 0) -> list[str]:
    """Everything that waits goes to an actor; ids in the order in which they went."""
    sent = []
    while (ticket := work.next()) is not None:
        work.sent(ticket.group_id, actor)
        sent.append(ticket.group_id)
    return sent


async def run_as_far_as_it_can(task: "asyncio.Task[tuple[str, ...]]") -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    if task.done():
        task.result()


async def test_a_slot_is_free_again_when_its_group_was_released() -> None:
    work = filled()
    first = send(work)
    assert len(first) == 4 and work.next() is None
    for group_id in first:
        work.ready(group_id)
    assert await work.take(0) == tuple(first)
    assert work.next() is None
    work.release(0, version=1)
    assert len(send(work)) == 4
    assert {ticket.born for ticket in work.unfinished()} == {1}


async def test_a_batch_is_the_oldest_groups_however_slow_they_are() -> None:
    work = filled(max_staleness=1)
    sent = send(work)
    slow, *others = sent
    for group_id in others:
        work.ready(group_id)
    taking = asyncio.create_task(work.take(0))
    await run_as_far_as_it_can(taking)
    assert not taking.done() and slow in work.waiting_for()
    work.ready(slow)
    assert await taking == tuple(sent[:4])


async def test_a_batch_that_is_asked_for_again_is_the_same_and_can_be_put_back() -> None:
    work = filled(max_staleness=1)
    for group_id in (sent := send(work)):
        work.ready(group_id)
    both = await asyncio.gather(work.take(0), work.take(0))
    assert both[0] == both[1] == tuple(sent[:4])
    assert await work.take(1) == tuple(sent[4:])
    work.put_back(0)
    assert await work.take(2) == tuple(sent[:4])


@pytest.mark.parametrize(
    ("max_staleness", "late_release"),
    # Without staleness a batch is always released before the next one is sampled.
    [(0, False), *((bound, late) for bound in (1, 2, 4) for late in (False, True))],
)
@pytest.mark.parametrize("seed", range(5))
async def test_no_group_is_trained_on_that_is_older_than_the_bound(
    max_staleness: int, late_release: bool, seed: int
) -> None:
    """A simulated fleet: sampling takes random times, some groups take as long as forty batches, some fail, some are lost."""
    chance = random.Random(seed)
    work = WorkBuffer(feed(), batch_groups=4, max_staleness=max_staleness)
    work.fill()
    now, running, oldest = 0.0, list[tuple[float, str]](), 0
    for step in range(200):
        taking = asyncio.create_task(work.take(step))
        await run_as_far_as_it_can(taking)
        while not taking.done():
            while (ticket := work.next()) is not None:
                work.sent(ticket.group_id, 0)
                slow = 40.0 if chance.random() < 0.03 else 1.0
                heapq.heappush(running, (now + slow * chance.uniform(0.5, 1.5), ticket.group_id))
            now, group_id = heapq.heappop(running)
            end = chance.choices([work.ready, work.close, work.sample_again], [0.9, 0.05, 0.05])[0]
            end(group_id)
            await run_as_far_as_it_can(taking)
        names = taking.result()
        tickets = {ticket.group_id: ticket for ticket in work.unfinished()}
        assert len(tickets) <= 4 * (max_staleness + 1)
        oldest = max(oldest, *(step - tickets[name].born for name in names))
        if late_release and step > 0:
            work.release(step - 1, version=step)
        if not late_release:
            work.release(step, version=step + 1)
    assert oldest <= max_staleness
    # The bound is reached, so that it is not the simulation that holds it.
    assert oldest == max_staleness


async def test_a_group_without_any_reward_frees_its_slot_for_another_prompt() -> None:
    work = filled()
    failed, *others = send(work)
    work.close(failed)
    (another,) = send(work)
    for group_id in (*others, another):
        work.ready(group_id)
    assert await work.take(0) == (*others, another)


async def test_a_verifier_that_fails_for_a_whole_batch_is_told_of_and_not_asked_for_ever() -> None:
    work = filled()
    for _ in range(4):
        work.close(send(work)[0])
    with pytest.raises(NothingScoredError, match="4 groups in a row"):
        await work.take(0)
    # Whoever goes on is told again after as many more failures, and only then.
    send(work)
    for ticket in work.unfinished():
        work.ready(ticket.group_id)
    assert len(await work.take(0)) == 4


async def test_what_died_with_its_actor_is_not_drawn_and_is_sampled_again_at_its_place() -> None:
    work = filled()
    sent = send(work)
    for group_id in sent:
        work.ready(group_id)
    assert work.died(0) == tuple(sent)
    taking = asyncio.create_task(work.take(0))
    await run_as_far_as_it_can(taking)
    assert not taking.done()
    for group_id in sent:
        work.sample_again(group_id)
    again = send(work, actor=1)
    assert again == [f"{group_id[:-1]}1" for group_id in sent]
    for group_id in again:
        work.ready(group_id)
    assert await taking == tuple(again)


async def test_an_error_reaches_whoever_waits() -> None:
    work = filled()
    taking = asyncio.create_task(work.take(0))
    await run_as_far_as_it_can(taking)
    work.fail(ValueError("prompt too long"))
    with pytest.raises(ValueError, match="prompt too long"):
        await taking


async def test_a_checkpoint_carries_every_ticket_that_was_not_released() -> None:
    dealing = feed()
    work = WorkBuffer(dealing, batch_groups=4, max_staleness=0)
    work.fill()
    admitted = send(work)
    work.ready(admitted[1])
    assert [ticket.group_id for ticket in work.unfinished()] == admitted
    restored = WorkBuffer(dealing, batch_groups=6, max_staleness=0)
    restored.restore(work.unfinished(), version=3)
    restored.fill()
    assert send(restored)[:4] == admitted and len(restored.unfinished()) == 6
    assert {ticket.born for ticket in restored.unfinished()} == {3}


async def test_a_batch_has_its_completions_between_its_groups_and_each_attempt_keeps_its_share() -> None:
    adaptive = feed(group_size=4, max_group_size=8)
    adaptive.learn(ExpectedSignal(np.arange(len(PROMPTS)) % 2, np.array([0.25, 0.01]), np.array([0.25, 0.25])))
    work = WorkBuffer(adaptive, batch_groups=4, max_staleness=0)
    work.fill()
    first = {ticket.group_id: ticket for ticket in work.unfinished()}
    assert sum(ticket.group_size for ticket in first.values()) == 16
    assert len({ticket.group_size for ticket in first.values()}) > 1
    # A group without any reward makes room for one of the usual size; a lost one is sampled again as it was.
    failed, lost, *_ = send(work)
    work.close(failed)
    (replacement,) = [ticket for ticket in work.unfinished() if ticket.group_id not in first]
    assert replacement.group_size == 4
    work.sample_again(lost)
    (again,) = [ticket for ticket in work.unfinished() if ticket.attempt == 1]
    assert again.group_size == first[lost].group_size


# --- groups of equal rewards that are passed by -----------------------------------------------------------------------
UNIFORM = {0, 2, 3, 5, 9, 10, 11, *range(14, 40)}
"""Places of the feed whose groups have equal rewards."""


def finish(work: WorkBuffer, luck: random.Random, most: int = 1000) -> None:
    """Groups come back in any order, at most so many."""
    waiting = send(work)
    while waiting and most > 0:
        group_id = waiting.pop(luck.randrange(len(waiting)))
        if places(work)[group_id] in UNIFORM and work.may_pass(group_id):
            work.pass_by(group_id)
        else:
            work.ready(group_id)
        waiting += send(work)
        most -= 1


def places(work: WorkBuffer) -> dict[str, int]:
    return {ticket.group_id: ticket.sequence for ticket in work.unfinished()}


def passing(dealing: PromptFeed) -> WorkBuffer:
    return WorkBuffer(dealing, batch_groups=4, max_staleness=0, generation_batches=3)


async def batch(work: WorkBuffer, step: int) -> list[int]:
    known = places(work)
    return [known[group_id] for group_id in await work.take(step)]


@pytest.mark.parametrize("seed", range(8))
async def test_a_batch_is_the_first_groups_that_are_not_passed_by_however_they_arrive(seed: int) -> None:
    luck, work = random.Random(seed), passing(feed())
    work.fill()
    finish(work, luck)
    assert await batch(work, 0) == [1, 4, 6, 7]
    assert sorted(places(work).values()) == list(range(8))
    work.release(0, 1)
    # The second step begins at place 8, and may pass what lies in its first two batches, up to 15.
    finish(work, luck)
    assert await batch(work, 1) == [8, 12, 13, 16]
    work.release(1, 2)
    finish(work, luck)
    assert await batch(work, 2) == [25, 26, 27, 28]


@pytest.mark.parametrize("seed", range(8))
async def test_a_resume_samples_what_was_passed_by_again_and_makes_the_same_batch(seed: int) -> None:
    luck, dealing = random.Random(seed), feed()
    work = passing(dealing)
    work.fill()
    finish(work, luck, most=luck.randrange(8))
    saved = dealing.state(work.unfinished())
    again = feed()
    resumed = passing(again)
    resumed.restore(again.load_state(saved), version=0)
    resumed.fill()
    finish(resumed, luck)
    assert await batch(resumed, 0) == [1, 4, 6, 7]
    assert sorted(places(resumed).values()) == list(range(8))
    resumed.release(0, 1)
    finish(resumed, luck)
    assert await batch(resumed, 1) == [8, 12, 13, 16]


def test_nothing_is_passed_by_unless_more_than_one_batch_may_be_sampled() -> None:
    work = filled()
    assert not any(work.may_pass(group_id) for group_id in send(work))


async def test_what_shaping_saw_of_a_group_goes_with_it_and_with_nothing_that_is_sampled_again() -> None:
    work = filled()
    first, *others = send(work)
    for number, group_id in enumerate([first, *others]):
        work.ready(group_id, {"arlcp": (float(number), 0.5)})
    assert await work.take(0) == (first, *others)
    assert work.observed(0) == {group: {"arlcp": (float(number), 0.5)} for number, group in enumerate([first, *others])}
    work.put_back(0)
    work.sample_again(first)
    (again,) = send(work)
    work.ready(again)
    await work.take(0)
    assert work.observed(0)[again] == {} and work.observed(0)[others[0]] == {"arlcp": (1.0, 0.5)}

"""The prompt feed: reproducible order, exact resume, tickets in flight."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.prompts.feed import PromptFeed
from actors.prompts.orders import ORDERS
from actors.prompts.prompt import Prompt, Ticket, prompt_id
from moments_service.moments.expected_signal import ExpectedSignal

pytestmark = pytest.mark.unit

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**31)
steps = st.integers(0, 40)


def pool(size: int) -> list[Prompt]:
    return [
        Prompt(prompt_id=prompt_id("s", f"prompt {i}"), source="s", text=f"prompt {i}", answer=str(i), verifier="exact")
        for i in range(size)
    ]


def deal(feed: PromptFeed, count: int) -> list[Ticket]:
    """One deal after the other, of 1, 2, 3 … tickets, the last one cut short."""
    dealt_so_far: list[Ticket] = []
    while len(dealt_so_far) < count:
        dealt_so_far += feed.deal(min(1 + len(dealt_so_far) % 3, count - len(dealt_so_far)))
    return dealt_so_far


def again(ticket: Ticket, times: int) -> Ticket:
    for _ in range(times):
        ticket = ticket.next_attempt()
    return ticket


def feed_of(prompts: list[Prompt], seed: int) -> PromptFeed:
    return PromptFeed(prompts, seed, group_size=4)


@given(sizes, seeds, steps, steps)
def test_resume_goes_on_exactly_where_the_saved_feed_stood(size: int, seed: int, before: int, after: int) -> None:
    straight = deal(feed_of(pool(size), seed), before + after)
    first = feed_of(pool(size), seed)
    dealt = deal(first, before)
    saved = json.loads(json.dumps(first.state()))

    resumed = feed_of(pool(size)[::-1], seed)
    assert resumed.load_state(saved) == ()
    assert dealt + deal(resumed, after) == straight


@given(sizes, seeds, st.integers(1, 4))
def test_every_epoch_deals_every_prompt_once(size: int, seed: int, epochs: int) -> None:
    feed = feed_of(pool(size), seed)
    everything = {prompt.prompt_id for prompt in pool(size)}
    for epoch in range(epochs):
        tickets = deal(feed, size)
        assert {ticket.prompt.prompt_id for ticket in tickets} == everything
        assert [ticket.sequence for ticket in tickets] == list(range(epoch * size, (epoch + 1) * size))
        assert {ticket.group_size for ticket in tickets} == {4}
        assert {ticket.group_id.partition(":")[2] for ticket in tickets} == {f"{epoch}:0:0"}


@given(sizes, seeds, steps, st.data())
def test_tickets_in_flight_come_back_as_they_were(size: int, seed: int, dealt: int, data: st.DataObject) -> None:
    feed = feed_of(pool(size), seed)
    tickets = deal(feed, dealt)
    kept = data.draw(st.lists(st.sampled_from(tickets), unique_by=lambda t: t.sequence)) if tickets else []
    in_flight = [again(ticket, data.draw(st.integers(0, 3))) for ticket in kept]
    saved = json.loads(json.dumps(feed.state(in_flight=in_flight)))
    restored = feed_of(pool(size), seed).load_state(saved)
    assert list(restored) == in_flight
    assert [ticket.group_id for ticket in restored] == [ticket.group_id for ticket in in_flight]


def test_group_ids_never_repeat() -> None:
    tickets = deal(feed_of(pool(7), 3), 70)
    assert len({again(ticket, times).group_id for ticket in tickets for times in range(3)}) == 3 * 70


def test_the_next_attempt_is_the_same_place_under_another_id() -> None:
    ticket = replace(deal(feed_of(pool(3), 0), 1)[0], born=7)
    second = ticket.next_attempt().next_attempt()
    assert second.group_id == ticket.group_id.removesuffix("0") + "2" and second.attempt == 2
    assert replace(second, group_id=ticket.group_id, attempt=0) == ticket


def test_seeds_and_epochs_give_other_orders() -> None:
    first, second = feed_of(pool(20), 0), feed_of(pool(20), 1)
    epochs = [[t.prompt.prompt_id for t in deal(feed, 20)] for feed in (first, first, second)]
    assert epochs[0] != epochs[1] and epochs[0] != epochs[2]


@pytest.mark.parametrize(
    "other",
    [
        pool(4),
        [*pool(4), replace(pool(5)[4], answer="another gold")],
        [*pool(4), replace(pool(5)[4], verifier="numeric")],
    ],
    ids=["prompt missing", "other answer", "other verifier"],
)
def test_resume_with_other_prompts_is_refused(other: list[Prompt]) -> None:
    first = feed_of(pool(5), 0)
    with pytest.raises(ValueError, match="other prompts, and it does not say which"):
        feed_of(other, 0).load_state(first.state())
    for more in ([], [pool(7)[6]]):
        with pytest.raises(
            ValueError, match=r"of its 5, (1|0) are not among the \d of this run, and (0|1) have another answer"
        ):
            feed_of([*other, *more], 0).load_state(first.state(), first.fingerprints())


@pytest.mark.parametrize("order", ORDERS)
@given(sizes, st.integers(1, 9), seeds, steps, st.data())
def test_a_pool_that_grew_begins_an_epoch_of_all_of_it(
    order: str, size: int, more: int, seed: int, before: int, data: st.DataObject
) -> None:
    def fresh(prompts: list[Prompt]) -> PromptFeed:
        feed = PromptFeed(prompts, seed, 4, order=order)
        alike = np.zeros(len(prompts), dtype=np.int64)
        feed.learn(ExpectedSignal(alike, np.ones(1), np.ones(1)))
        return feed

    first = fresh(pool(size))
    dealt = deal(first, before)
    in_flight = dealt[-2:]
    saved = json.loads(json.dumps(first.state(in_flight)))
    grown = pool(size + more)
    resumed, same = fresh(grown[::-1]), fresh(grown)
    known = json.loads(json.dumps(first.fingerprints()))
    assert list(resumed.load_state(saved, known)) == list(same.load_state(saved, known)) == in_flight

    epoch = deal(resumed, len(grown))
    assert epoch == deal(same, len(grown))
    assert not {ticket.group_id for ticket in epoch} & {ticket.group_id for ticket in dealt}
    places = [ticket.sequence for ticket in (*dealt, *epoch)]
    assert places == sorted(set(places)) and epoch[0].sequence % len(grown) == 0
    if order != "signal":
        assert {ticket.prompt.prompt_id for ticket in epoch} == {prompt.prompt_id for prompt in grown}
    else:  # nobody waits longer than four epochs
        dealt_to = {ticket.prompt.prompt_id for ticket in (*epoch, *deal(resumed, 3 * len(grown)))}
        assert dealt_to == {prompt.prompt_id for prompt in grown}


def test_resume_with_another_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed 0, this run has 1"):
        feed_of(pool(5), 1).load_state(feed_of(pool(5), 0).state())


def test_empty_and_duplicate_pools_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        feed_of([], 0)
    with pytest.raises(ValueError, match="3 prompts but 2 distinct ids"):
        feed_of([*pool(2), pool(1)[0]], 0)

"""Sources that share the feed by weight: the shares are kept to, nothing is dealt twice under one id, a resume goes on exactly."""

import json
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.prompts.curricula import ConstantWeights, curriculum_of
from actors.prompts.feed import PromptFeed
from actors.prompts.options import PromptConfig
from actors.prompts.orders import ORDERS
from actors.prompts.prompt import Prompt, Ticket
from actors.prompts.turns import WHOLE, Turns, whole_shares
from tests.unit.test_outcome_orders import judged, told

pytestmark = pytest.mark.unit

weights = st.dictionaries(
    st.sampled_from("abcdef"), st.floats(1e-3, 1e3, allow_nan=False, allow_infinity=False), min_size=1
)
sizes = st.dictionaries(st.sampled_from("abc"), st.integers(1, 9), min_size=1)


def pool(sizes: dict[str, int]) -> list[Prompt]:
    """Prompts of sources by name; rows call all of them the same."""
    return [
        Prompt(f"{name}{i}", source="s", text=f"{name}{i}", answer=str(i), verifier="exact", origin=name)
        for name, size in sizes.items()
        for i in range(size)
    ]


def feed_of(sizes: dict[str, int], weights: dict[str, float], order: str = "shuffled", seed: int = 0) -> PromptFeed:
    return PromptFeed(pool(sizes), seed, 4, order=order, curriculum=ConstantWeights(weights))


def play(feed: PromptFeed, steps: range, deals: list[int], before: list[Ticket], size: int) -> list[list[Ticket]]:
    """The deal of each step, after what came of the deal before it."""
    dealt = []
    for step in steps:
        if feed.adapts:
            feed.learn(told(size, judged(step, before) if step else None))
        before = feed.deal(deals[step])
        dealt.append(before)
    return dealt


def drawn(feed: PromptFeed, places: int) -> list[str]:
    return [ticket.prompt.origin for ticket in feed.deal(places)]


@given(weights, st.integers(1, 400))
def test_after_every_place_a_source_is_less_than_one_place_from_its_share(
    weights: dict[str, float], places: int
) -> None:
    shares = whole_shares(weights)
    assert sum(shares.values()) == WHOLE
    total = sum(map(Fraction, weights.values()))
    assert all(abs(shares[name] - Fraction(weight) / total * WHOLE) < 10 for name, weight in weights.items())
    turns, had = Turns(shares), dict.fromkeys(weights, 0)
    for place in range(1, places + 1):
        had[turns.next()] += 1
        assert all(abs(had[name] - Fraction(place * share, WHOLE)) < 1 for name, share in shares.items())


def test_who_has_no_share_has_no_turn() -> None:
    turns = Turns(whole_shares({"a": 1.0, "b": 0.0, "c": 3.0}))
    assert [turns.next() for _ in range(8)].count("a") == 2
    assert turns.shares["b"] == 0 and turns.credit["b"] == 0


def test_shares_go_by_weight_and_not_by_how_many_prompts_there_are() -> None:
    dealt = drawn(feed_of({"a": 100, "b": 3}, {"a": 1.0, "b": 3.0}), 400)
    assert (dealt.count("a"), dealt.count("b")) == (100, 300)


@given(sizes=sizes, seed=st.integers(0, 2**31), data=st.data())
def test_every_source_goes_through_its_own_prompts_at_its_own_pace(
    sizes: dict[str, int], seed: int, data: st.DataObject
) -> None:
    weights = {name: data.draw(st.sampled_from([0.5, 1.0, 7.0])) for name in sizes}
    tickets = feed_of(sizes, weights, seed=seed).deal(60)
    for name, size in sizes.items():
        own = [ticket.prompt.prompt_id for ticket in tickets if ticket.prompt.origin == name]
        for start in range(0, len(own) - size + 1, size):
            assert len(set(own[start : start + size])) == size
    assert [ticket.sequence for ticket in tickets] == list(range(60))


@pytest.mark.parametrize("order", ORDERS)
@given(sizes=sizes, seed=st.integers(0, 2**31), deals=st.lists(st.integers(1, 9), max_size=10), data=st.data())
@settings(max_examples=30, deadline=None)
def test_resume_goes_on_exactly_where_the_saved_feed_stood(
    order: str, sizes: dict[str, int], seed: int, deals: list[int], data: st.DataObject
) -> None:
    weights = {name: data.draw(st.sampled_from([0.5, 1.0, 7.0])) for name in sizes}
    size, cut = sum(sizes.values()), data.draw(st.integers(0, len(deals)))
    straight = play(feed_of(sizes, weights, order, seed), range(len(deals)), deals, [], size)
    first = feed_of(sizes, weights, order, seed)
    before = play(first, range(cut), deals, [], size)
    saved = json.loads(json.dumps(first.state()))
    resumed = PromptFeed(pool(sizes)[::-1], seed, 4, order=order, curriculum=ConstantWeights(weights))
    resumed.load_state(saved)
    if resumed.adapts:
        resumed.learn(told(size, judged(cut - 1, before[-2]) if cut > 1 and data.draw(st.booleans()) else None))
    assert before + play(resumed, range(cut, len(deals)), deals, before[-1] if before else [], size) == straight
    tickets = [ticket for deal in straight for ticket in deal]
    assert len({ticket.group_id for ticket in tickets}) == len(tickets)


@given(
    before=sizes,
    more=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 5)),
    dealt=st.integers(0, 30),
    order=st.sampled_from(["shuffled", "mopps", "greso", "kalman"]),
)
def test_a_pool_that_grew_begins_epochs_of_the_sources_that_did(
    before: dict[str, int], more: dict[str, int], dealt: int, order: str
) -> None:
    weights = dict.fromkeys(before, 1.0)
    first = feed_of(before, weights, order)
    tickets = first.deal(dealt)
    after = {name: before.get(name, 0) + more.get(name, 0) for name in before | more}
    grown = feed_of(after, dict.fromkeys(after, 1.0), order)
    saved = json.loads(json.dumps(first.state()))
    grown.load_state(saved, first.fingerprints())
    later = grown.deal(sum(after.values()) * 3)
    ids = [ticket.group_id for ticket in (*tickets, *later)]
    assert len(set(ids)) == len(ids)
    if order == "shuffled":
        for name in more:
            own = [ticket.prompt.prompt_id for ticket in later if ticket.prompt.origin == name]
            whole = own[: after[name]]
            assert len(set(whole)) == len(whole)


def test_other_weights_on_a_resume_count_from_there() -> None:
    first = feed_of({"a": 9, "b": 9}, {"a": 1.0, "b": 1.0})
    assert drawn(first, 5).count("a") in (2, 3)
    same, other = feed_of({"a": 9, "b": 9}, {"a": 1.0, "b": 1.0}), feed_of({"a": 9, "b": 9}, {"a": 1.0, "b": 4.0})
    for feed in (same, other):
        feed.load_state(json.loads(json.dumps(first.state())))
    assert drawn(same, 10) == drawn(first, 10)
    dealt = drawn(other, 50)
    assert dealt.count("a") == 10 and all(abs(dealt[:n].count("a") - n / 5) < 1 for n in range(51))


def test_a_feed_of_one_pool_and_one_of_shares_do_not_take_each_others_state() -> None:
    shares, one = feed_of({"a": 2, "b": 2}, {"a": 1.0, "b": 1.0}), PromptFeed(pool({"a": 2, "b": 2}), 0, 4)
    with pytest.raises(ValueError, match=r"dealt prompts in order shuffled .*, this run in order shuffled, by source"):
        shares.load_state(one.state())
    with pytest.raises(ValueError, match="in order shuffled, by source"):
        one.load_state(shares.state())


def test_prompts_that_moved_to_another_source_are_refused() -> None:
    saved = feed_of({"a": 2, "b": 2}, {"a": 1.0, "b": 1.0}).state()
    moved = [replace(p, origin="a") if p.prompt_id == "b0" else p for p in pool({"a": 2, "b": 2})]
    feed = PromptFeed(moved, 0, 4, curriculum=ConstantWeights({"a": 1.0, "b": 1.0}))
    with pytest.raises(ValueError, match="2 prompts of the checkpoint's feed were from source `a`, now 3 of them are"):
        feed.load_state(saved)


def recipe(*weights: float | None) -> PromptConfig:
    sources = [
        {"kind": "jsonl", "name": f"s{i}", "path": "p", **({} if weight is None else {"weight": weight})}
        for i, weight in enumerate(weights)
    ]
    return PromptConfig.model_validate({"sources": sources})


def test_all_sources_name_a_weight_or_none_does() -> None:
    assert curriculum_of(recipe(None, None)) is None
    made = curriculum_of(recipe(1, 2.5))
    assert made is not None and made.weights(0) == {"s0": 1, "s1": 2.5}
    with pytest.raises(
        ValueError, match="source `s1` has no `weight`, but others have; give every source one, or none"
    ):
        recipe(1, None, 2)
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weight"):
            recipe(1, bad)

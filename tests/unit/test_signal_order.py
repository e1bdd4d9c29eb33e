"""The signal order and adaptive group sizes: shares, bounds, exact resume; what the moments tell the feed."""

import itertools
import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.prompts.feed import PromptFeed
from actors.prompts.group_sizes import SMALLEST, group_sizes
from actors.prompts.orders.signal import SWEEP_EVERY
from actors.prompts.prompt import Prompt, Ticket
from moments_service.config import BlendConfig, MomentsConfig
from moments_service.moments import ClusterMoments, CommittedRewards
from moments_service.moments.expected_signal import HALF_RIGHT, ExpectedSignal, expected_signal
from tests.unit.test_prompt_feed import pool

pytestmark = pytest.mark.unit

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**31)
deal_sizes = st.lists(st.integers(1, 9), max_size=12)


def signal(clusters: list[int], within: list[float]) -> ExpectedSignal:
    return ExpectedSignal(np.array(clusters), np.array(within), np.array(within) + 0.1)


def told_at(step: int, size: int) -> ExpectedSignal:
    """What the moments of step `step` would say; clusters change on the way, and some promise nothing."""
    generator = np.random.default_rng(step)
    clusters = np.random.default_rng(step // 3).integers(0, 3, size)
    return signal(clusters.tolist(), (generator.random(3) * (generator.random(3) < 0.7)).tolist())


def reversed_pool(told: ExpectedSignal) -> ExpectedSignal:
    return ExpectedSignal(told.clusters[::-1], told.within, told.total)


def play(feed: PromptFeed, steps: range, deals: list[int], size: int, backwards: bool = False) -> list[Ticket]:
    dealt: list[Ticket] = []
    for step in steps:
        told = told_at(step, size)
        feed.learn(reversed_pool(told) if backwards else told)
        dealt += feed.deal(deals[step])
    return dealt


@pytest.mark.parametrize("order", ["shuffled", "signal"])
@pytest.mark.parametrize("largest", [None, 7])
@given(size=sizes, seed=seeds, deals=deal_sizes, data=st.data())
@settings(max_examples=30, deadline=None)
def test_resume_goes_on_exactly_where_the_saved_feed_stood(
    order: str, largest: int | None, size: int, seed: int, deals: list[int], data: st.DataObject
) -> None:
    def fresh(backwards: bool = False) -> PromptFeed:
        return PromptFeed(pool(size)[:: -1 if backwards else 1], seed, 4, largest, order)

    cut = data.draw(st.integers(0, len(deals)))
    straight = play(fresh(), range(len(deals)), deals, size)
    first = fresh()
    before = play(first, range(cut), deals, size)
    in_flight = before[-2:]
    saved = json.loads(json.dumps(first.state(in_flight)))

    resumed = fresh(backwards=True)
    assert list(resumed.load_state(saved)) == in_flight
    assert before + play(resumed, range(cut, len(deals)), deals, size, backwards=True) == straight


@given(sizes, seeds, deal_sizes)
@settings(deadline=None)
def test_ids_are_unique_and_occurrences_count_within_an_epoch(size: int, seed: int, deals: list[int]) -> None:
    tickets = play(PromptFeed(pool(size), seed, 2, order="signal"), range(len(deals)), deals, size)
    assert [ticket.sequence for ticket in tickets] == list(range(len(tickets)))
    places = [tuple(map(int, ticket.group_id.split(":")[1:3])) for ticket in tickets]
    assert [epoch for epoch, _ in places] == [n // size for n in range(len(tickets))]
    assert len({ticket.group_id for ticket in tickets}) == len(tickets)
    seen: Counter[tuple[str, int]] = Counter()
    for ticket, (epoch, occurrence) in zip(tickets, places, strict=True):
        assert occurrence == seen[ticket.prompt.prompt_id, epoch]
        seen[ticket.prompt.prompt_id, epoch] += 1


@given(sizes, seeds, st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_prompt_starves_whatever_the_moments_say(size: int, seed: int, changing: bool) -> None:
    feed = PromptFeed(pool(size), seed, 2, order="signal")
    last = dict.fromkeys((prompt.prompt_id for prompt in pool(size)), -1)
    for place in range(3 * SWEEP_EVERY * size):
        # All promise lies on one prompt, or on one after the other.
        favourite = place // 3 % size if changing else 0
        feed.learn(signal(list(range(size)), [float(row == favourite) for row in range(size)]))
        (ticket,) = feed.deal(1)
        last[ticket.prompt.prompt_id] = place
        assert place - min(last.values()) <= SWEEP_EVERY * size


def test_prompts_come_in_proportion_to_the_deviation_within_their_cluster() -> None:
    size, variances = 60, [0.25, 0.01, 0.09, 0.0]
    clusters = [0] * 10 + [1] * 20 + [2] * 20 + [3] * 10
    feed = PromptFeed(pool(size), 5, 2, order="signal")
    feed.learn(signal(clusters, variances))
    tickets = feed.deal(20_000)
    cluster_of = {prompt.prompt_id: clusters[i] for i, prompt in enumerate(pool(size))}
    drawn = Counter(cluster_of[t.prompt.prompt_id] for t in tickets if t.sequence % SWEEP_EVERY)
    total = sum(drawn.values())
    assert total == 15_000
    weights = np.array([10 * 0.5, 20 * 0.1, 20 * 0.3, 0.0])
    for cluster, share in enumerate(weights / weights.sum()):
        error = 4 * (share * (1 - share) / total) ** 0.5
        assert abs(drawn[cluster] / total - share) <= error
    # In its cluster every prompt comes as often as any other; one that promises nothing comes by the sweep alone.
    visits = Counter(t.prompt.prompt_id for t in tickets)
    for cluster in range(4):
        of_cluster = [visits[name] for name, own in cluster_of.items() if own == cluster]
        assert max(of_cluster) - min(of_cluster) <= 1
    assert min(visits.values()) > 20_000 / (SWEEP_EVERY * size) - 1


def test_where_nothing_promises_anything_every_prompt_comes_once_an_epoch() -> None:
    feed = PromptFeed(pool(9), 1, 2, order="signal")
    feed.learn(signal([0] * 9, [0.0]))
    first, second = feed.deal(9), feed.deal(9)
    assert len({t.prompt.prompt_id for t in first}) == 9
    assert [t.prompt for t in first] == [t.prompt for t in second]
    other = PromptFeed(pool(9), 2, 2, order="signal")
    other.learn(signal([0] * 9, [0.0]))
    assert [t.prompt for t in other.deal(9)] != [t.prompt for t in first]


def test_single_completions_go_by_the_variance_of_the_whole_cluster() -> None:
    feed = PromptFeed(pool(8), 0, group_size=1, order="signal")
    feed.learn(ExpectedSignal(np.array([0] * 4 + [1] * 4), np.array([1.0, 0.0]), np.array([0.0, 1.0])))
    drawn = {t.prompt.prompt_id for t in feed.deal(40) if t.sequence % SWEEP_EVERY}
    assert drawn == {prompt.prompt_id for prompt in pool(8)[4:]}


def test_a_feed_that_goes_by_the_moments_must_be_told_of_them() -> None:
    with pytest.raises(RuntimeError, match="call learn first"):
        PromptFeed(pool(3), 0, 2, order="signal").deal(1)
    with pytest.raises(RuntimeError, match="call learn first"):
        PromptFeed(pool(3), 0, 4, max_group_size=8).deal(1)
    with pytest.raises(ValueError, match="the signal is of 2 prompts, but the feed deals 3"):
        PromptFeed(pool(3), 0, 2, order="signal").learn(signal([0, 0], [0.1]))
    feeds = [PromptFeed(pool(3), 0, 4), PromptFeed(pool(3), 0, 4, order="signal"), PromptFeed(pool(3), 0, 4, 8)]
    assert [feed.adapts for feed in feeds] == [False, True, True]


def test_a_checkpoint_of_the_other_order_is_refused() -> None:
    feeds = {order: PromptFeed(pool(3), 0, 2, order=order) for order in ("shuffled", "signal")}
    with pytest.raises(ValueError, match=r"in order shuffled \(prompts.order\), this run in order signal"):
        feeds["signal"].load_state(feeds["shuffled"].state())


variances = st.lists(st.sampled_from([0.0, 0.01, 0.05, 0.09, 0.16, 0.25]), min_size=1, max_size=4)


@given(variances, st.integers(3, 6), st.data())
@settings(deadline=None)
def test_group_sizes_keep_the_budget_and_are_the_best_there_are(
    variance: list[float], largest: int, data: st.DataObject
) -> None:
    groups = len(variance)
    completions = data.draw(st.integers(SMALLEST * groups, largest * groups))
    found = group_sizes(np.array(variance), completions, largest)
    assert sum(found) == completions and all(SMALLEST <= size <= largest for size in found)

    def error(choice: tuple[int, ...]) -> Fraction:
        return sum((Fraction(v) / size for v, size in zip(variance, choice, strict=True)), Fraction(0))

    every = itertools.product(range(SMALLEST, largest + 1), repeat=groups)
    best = min(error(choice) for choice in every if sum(choice) == completions)
    # Groups worth nothing count for a billionth, which may tip what is equal but for rounding.
    assert float(error(tuple(found))) == pytest.approx(float(best), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.2])
def test_equal_groups_get_equal_sizes(value: float) -> None:
    assert group_sizes(np.full(5, value), 20, 8) == [4] * 5
    assert group_sizes(np.full(4, value), 18, 8) == [5, 5, 4, 4]


def test_budgets_that_the_bounds_cannot_hold_are_refused() -> None:
    for completions in (3, 13):
        with pytest.raises(ValueError, match=f"{completions} completions do not fit 2 groups of 2 to 6"):
            group_sizes(np.ones(2), completions, 6)


def test_a_hand_spends_its_budget_where_prompts_differ() -> None:
    prompts = pool(12)
    clusters = [i % 2 for i in range(12)]
    feed = PromptFeed(prompts, 0, group_size=4, max_group_size=8)
    feed.learn(signal(clusters, [0.25, 0.0025]))
    cluster_of = {prompt.prompt_id: clusters[i] for i, prompt in enumerate(prompts)}
    tickets = feed.deal(12)
    assert sum(ticket.group_size for ticket in tickets) == 48
    by_cluster = {own: {t.group_size for t in tickets if cluster_of[t.prompt.prompt_id] == own} for own in (0, 1)}
    assert by_cluster == {0: {6}, 1: {2}}
    assert [ticket.group_size for ticket in feed.deal(1)] == [4]
    assert [ticket.next_attempt().group_size for ticket in tickets] == [ticket.group_size for ticket in tickets]


def fold(moments: ClusterMoments, cluster: int, *groups: tuple[float, ...]) -> None:
    clusters = np.full(len(groups), cluster)
    moments.fold(CommittedRewards(clusters, np.array(groups), tuple(map(str, range(len(groups)))), policy_version=1))


def told_by(moments: ClusterMoments) -> ExpectedSignal:
    return expected_signal(moments.history(np.arange(len(moments))), np.zeros(1, dtype=np.int64))


def test_prompts_that_always_agree_promise_nothing_however_unlike_they_are() -> None:
    moments = MomentsConfig(estimator=BlendConfig()).create_moments(3)
    fold(moments, 0, *[(1.0, 1.0), (0.0, 0.0)] * 50)
    fold(moments, 1, *[(1.0, 0.0), (0.0, 1.0)] * 50)
    told = told_by(moments)
    assert told.total[0] == pytest.approx(0.25) and told.total[1] == pytest.approx(0.25)
    # 100 contrasts of variance 0 or 1/2, and the prior's two of 1/6.
    assert told.within[:2] == pytest.approx([2 / 6 / 102, (50 + 2 / 6) / 102])
    # Nobody knows cluster 2: it promises as much as the best.
    assert told.within[2] == told.within[1] > HALF_RIGHT


def test_the_paper_s_moments_tell_of_the_whole_variance() -> None:
    moments = MomentsConfig(estimator=BlendConfig(variant="paper")).create_moments(2)
    fold(moments, 0, (0.0, 0.0))
    for _ in range(20):
        fold(moments, 0, (0.0, 0.0))
    told = told_by(moments)
    assert told.within[0] == pytest.approx(0.0, abs=1e-6) and told.within[1] == HALF_RIGHT


def test_prompts_are_rows_by_id_however_the_pool_was_read() -> None:
    prompts: list[Prompt] = pool(6)
    clusters = [0, 0, 0, 1, 1, 1]
    one, other = (PromptFeed(each, 3, 2, order="signal") for each in (prompts, prompts[::-1]))
    one.learn(signal(clusters, [0.2, 0.01]))
    other.learn(signal(clusters[::-1], [0.2, 0.01]))
    assert one.deal(50) == other.deal(50)

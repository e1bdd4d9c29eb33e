"""Orders that learn from how groups came out: their filters, their choices, exact resume, and who may starve."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.prompts.feed import PromptFeed
from actors.prompts.orders import ORDERS, UNKNOWN
from actors.prompts.orders.greso import GresoOrder
from actors.prompts.orders.kalman import KalmanOrder
from actors.prompts.orders.mopps import MoppsOrder
from actors.prompts.orders.remembering import RememberingOrder
from actors.prompts.prompt import Ticket
from moments_service.moments import CommittedRewards
from moments_service.moments.expected_signal import ExpectedSignal
from moments_service.moments.outcomes import Outcomes, outcomes_of
from moments_service.seeding import derive_seed
from tests.unit.test_prompt_feed import pool

pytestmark = pytest.mark.unit

LEARNING = ["mopps", "greso", "kalman"]
every_order = pytest.mark.parametrize("order", LEARNING)


def came_out(step: int, prompts: list[str], rewards: list[list[float]]) -> Outcomes:
    table = np.array([[*row, *[math.nan] * (8 - len(row))] for row in rewards]).reshape(-1, 8)
    clusters = np.zeros(len(prompts), dtype=np.int64)
    return outcomes_of(step, CommittedRewards(clusters, table, tuple(prompts), step + 1))


def told(size: int, outcomes: Outcomes | None) -> ExpectedSignal:
    return ExpectedSignal(np.zeros(size, dtype=np.int64), np.full(1, 0.2), np.full(1, 0.2), outcomes)


def judged(step: int, tickets: list[Ticket]) -> Outcomes:
    """A third of the prompts is never solved, a third sometimes, a third always; a tenth of the groups has no reward."""
    rewards = []
    for ticket in tickets:
        kind, luck = int(ticket.prompt.answer or 0) % 3, derive_seed(3, ticket.group_id)
        rewards.append([] if luck % 10 == 0 else [float(luck >> i & 1) if kind == 1 else kind / 2 for i in range(4)])
    return came_out(step, [ticket.prompt.prompt_id for ticket in tickets], rewards)


def play(feed: PromptFeed, steps: range, deals: list[int], before: list[Ticket], size: int) -> list[list[Ticket]]:
    """The deal of each step, after what came of the deal before it."""
    dealt = []
    for step in steps:
        feed.learn(told(size, judged(step, before) if step else None))
        before = feed.deal(deals[step])
        dealt.append(before)
    return dealt


@every_order
@given(
    size=st.integers(1, 12), seed=st.integers(0, 2**31), deals=st.lists(st.integers(1, 9), max_size=12), data=st.data()
)
@settings(max_examples=30, deadline=None)
def test_resume_goes_on_exactly_where_the_saved_feed_stood(
    order: str, size: int, seed: int, deals: list[int], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(deals)))
    straight = play(PromptFeed(pool(size), seed, 4, order=order), range(len(deals)), deals, [], size)
    first = PromptFeed(pool(size), seed, 4, order=order)
    before = play(first, range(cut), deals, [], size)
    saved = json.loads(json.dumps(first.state()))
    resumed = PromptFeed(pool(size)[::-1], seed, 4, order=order)
    resumed.load_state(saved)
    # The service that comes back tells of the last commit again, or of none.
    again = judged(cut - 1, before[-2]) if cut > 1 and data.draw(st.booleans()) else None
    resumed.learn(told(size, again))
    assert before + play(resumed, range(cut, len(deals)), deals, before[-1] if before else [], size) == straight
    if size > 1 and deals:
        tickets = [ticket for deal in straight for ticket in deal]
        assert len({ticket.group_id for ticket in tickets}) == len(tickets)


@every_order
def test_what_a_commit_brought_counts_once_and_of_known_prompts(order: str) -> None:
    made = ORDERS[order](["a", "b"], 0)
    outcomes = came_out(3, ["b", "x"], [[1.0, 1.0], [0.0, 0.0]])
    made.observe(np.array([1, UNKNOWN]), outcomes)
    learned = json.dumps(made.state())
    made.observe(np.array([1, UNKNOWN]), outcomes)
    made.observe(np.array([0, UNKNOWN]), replace(outcomes, step=2))
    assert json.dumps(made.state()) == learned
    memory = made.state()["memory"]
    untouched = ORDERS[order](["a", "b"], 0).state()["memory"]
    assert all(memory[name][0] == untouched[name][0] for name in memory) and memory != untouched


@every_order
def test_a_checkpoint_of_another_order_is_refused(order: str) -> None:
    with pytest.raises(ValueError, match=f"in order shuffled .*, this run in order {order}"):
        PromptFeed(pool(3), 0, 2, order=order).load_state(PromptFeed(pool(3), 0, 2).state())


@pytest.mark.parametrize("order", ["mopps", "kalman"])
def test_no_prompt_comes_twice_between_two_commits_while_there_are_others(order: str) -> None:
    feed = PromptFeed(pool(12), 1, 4, order=order)
    dealt: list[Ticket] = []
    for step in range(30):
        feed.learn(told(12, judged(step, dealt) if step else None))
        dealt = feed.deal(5) + feed.deal(7)
        assert len({ticket.prompt.prompt_id for ticket in dealt}) == 12


def test_outcomes_are_of_groups_with_a_reward() -> None:
    found = came_out(7, ["a", "b", "c", "a"], [[2.0, -1.0, 0.5], [], [0.25], [1.0, 1.0]])
    assert (found.step, found.prompts) == (7, ("a", "c", "a"))
    assert found.successes.tolist() == [1.5, 0.25, 2.0] and found.counts.tolist() == [3.0, 1.0, 2.0]
    assert found.uniform.tolist() == [False, False, True]


def observed(order: RememberingOrder, *groups: tuple[int, list[float]], step: int = 0) -> None:
    rows = np.array([row for row, _ in groups])
    order.observe(rows, came_out(step, [str(row) for row, _ in groups], [rewards for _, rewards in groups]))


# --- MoPPS ------------------------------------------------------------------------------------------------------------
def test_mopps_counts_as_its_formula_says() -> None:
    order = MoppsOrder(["a", "b"], 0)
    observed(order, (0, [1.0, 1.0, 0.0, 1.0]), (0, [0.0, 0.0]))
    # a: 1/2 + 1/2 + 3, then half of that + 1/2 + 0; b: 1/2 + 1/2 + 1, then half of that + 1/2 + 2.
    assert order.state()["memory"] == {"successes": [2.5, 1.0], "failures": [3.5, 1.0]}


def test_mopps_looks_for_prompts_near_one_half_and_may_forget_others() -> None:
    order = MoppsOrder([str(row) for row in range(40)], 5)
    drawn: Counter[int] = Counter()
    for step in range(300):
        # Rows 0 to 9 are solved every second time, 10 to 24 never, 25 to 39 always.
        rows = [order.draw(4 * step + i)[0] for i in range(4)]
        drawn.update(rows)
        groups = [(row, [1.0, 0.0] * 4 if row < 10 else [float(row > 24)] * 8) for row in rows]
        observed(order, *groups, step=step)
    assert sum(drawn[row] for row in range(10)) > 0.75 * 1200
    assert min(drawn[row] for row in range(10)) > 50 and max(drawn[row] for row in range(10, 40)) < 30


# --- Kalman -----------------------------------------------------------------------------------------------------------
def test_the_kalman_filter_is_exact_for_one_prompt() -> None:
    order = KalmanOrder(["a"], 0)
    mean, variance = 0.0, 4.0
    for step, right in ((0, 3), (1, 8), (5, 0)):
        observed(order, (0, [1.0] * right + [0.0] * (8 - right)), step=step)
        variance += 0.05 * (1 if step < 2 else 4)
        noise = 1 / (right + 0.5) + 1 / (8.5 - right)
        # As precisions, unlike the gain of the code.
        mean = (mean / variance + math.log((right + 0.5) / (8.5 - right)) / noise) / (1 / variance + 1 / noise)
        variance = 1 / (1 / variance + 1 / noise)
        memory = order.state()["memory"]
        assert memory["logit"][0] == pytest.approx(mean) and memory["variance"][0] == pytest.approx(variance)
    assert memory["seen_at"] == [6.0]


def test_kalman_draws_in_proportion_to_the_variance_of_a_reward() -> None:
    first: Counter[int] = Counter()
    for seed in range(4000):
        order = KalmanOrder(["a", "b"], seed)
        order.load_state(
            order.state() | {"memory": {"logit": [0.0, math.log(9)], "variance": [0.0, 0.0], "seen_at": [0.0, 0.0]}},
            np.arange(2),
        )
        first[order.draw(0)[0]] += 1
    share = 0.25 / (0.25 + 0.09)
    assert abs(first[0] / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000)


def test_kalman_comes_back_to_what_was_always_solved() -> None:
    order = KalmanOrder([str(row) for row in range(20)], 2)
    last = dict.fromkeys(range(20), 0)
    for step in range(2000):
        row, _ = order.draw(step)
        last[row] = step
        observed(order, (row, [1.0] * 8 if row else [1.0, 0.0] * 4), step=step)
    assert min(last.values()) > 1500


# --- GRESO ------------------------------------------------------------------------------------------------------------
def test_greso_skips_a_prompt_by_its_uniform_groups_in_a_row() -> None:
    order = GresoOrder([str(row) for row in range(30)], 4)
    uniform, mixed, alone = [1.0] * 4, [1.0, 0.0], [1.0]
    observed(order, *[(row, uniform) for row in range(20)])
    observed(order, *[(row, uniform) for row in range(10)], *[(row, alone) for row in range(10, 20)], step=1)
    observed(order, (0, mixed), step=2)
    assert order.state()["memory"]["uniform_in_a_row"] == [0.0] + [2.0] * 9 + [1.0] * 10 + [0.0] * 10
    drawn: Counter[int] = Counter()
    while order.state()["pass"] < 2000:
        drawn[order.draw(0)[0]] += 1
    for rows, chance in ((range(1, 10), 0.25), (range(10, 20), 0.5), ((0, *range(20, 30)), 1.0)):
        for row in rows:
            assert abs(drawn[row] / 2000 - chance) < 5 * math.sqrt(chance * (1 - chance) / 2000) + 1e-3


def test_greso_never_looks_for_ever() -> None:
    order = GresoOrder([str(row) for row in range(5)], 0)
    for step in range(200):
        observed(order, *[(row, [0.0, 0.0]) for row in range(5) if row != 3 or step < 60], step=step)
    assert Counter(order.draw(place)[0] for place in range(1, 50)) == {3: 49}

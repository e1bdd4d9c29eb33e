"""Shares of sources that change during a run: when they do, what is refused, and that a resume goes on exactly."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.prompts.curricula import curriculum_of
from actors.prompts.curricula.options import PassRateCurriculum
from actors.prompts.curricula.pass_rate import PassRateWeights
from actors.prompts.feed import PromptFeed
from actors.prompts.options import PromptConfig
from actors.prompts.prompt import Ticket
from moments_service.moments.outcomes import Outcomes
from moments_service.seeding import derive_seed
from tests.unit.test_outcome_orders import came_out, told
from tests.unit.test_shares_of_sources import pool

pytestmark = pytest.mark.unit

SIZES = {"easy": 7, "middle": 5, "hard": 4}
SIZE = sum(SIZES.values())
STEPS: dict[str, Any] = {
    "kind": "steps",
    "stages": [
        {"from_step": 0, "weights": {"easy": 1}},
        {"from_step": 3, "weights": {"easy": 1, "middle": 2, "hard": 1}},
        {"from_step": 5, "weights": {"hard": 1, "easy": 0}},
    ],
}
LEVELS: dict[str, Any] = {
    "kind": "pass_rate",
    "levels": [["easy"], ["middle"], ["hard"]],
    "advance_at": 0.75,
    "window": 8,
    "review": 0.25,
}


def recipe(curriculum: dict[str, Any], weights: dict[str, float] | None = None) -> PromptConfig:
    sources = [
        {"kind": "jsonl", "name": name, "path": "p"} | ({"weight": weights[name]} if weights else {}) for name in SIZES
    ]
    return PromptConfig.model_validate({"sources": sources, "curriculum": curriculum})


def feed_of(curriculum: dict[str, Any], order: str = "shuffled", weights: dict[str, float] | None = None) -> PromptFeed:
    return PromptFeed(pool(SIZES), 1, 4, order=order, curriculum=curriculum_of(recipe(curriculum, weights)))


def judged(step: int, tickets: list[Ticket]) -> Outcomes:
    """The longer the run, the more is right; a tenth of the groups has no reward."""
    rewards = []
    for ticket in tickets:
        luck = derive_seed(3, ticket.group_id)
        right = min(4, step // 2 + luck % 3)
        rewards.append([] if luck % 10 == 0 else [1.0] * right + [0.0] * (4 - right))
    return came_out(step, [ticket.prompt.prompt_id for ticket in tickets], rewards)


def play(feed: PromptFeed, steps: range, before: list[Ticket], groups: int = 8) -> list[list[Ticket]]:
    dealt = []
    for step in steps:
        feed.learn(told(SIZE, judged(step - 1, before) if step else None))
        before = feed.deal(groups)
        dealt.append(before)
    return dealt


def counts(tickets: list[Ticket]) -> dict[str, int]:
    origins = [ticket.prompt.origin for ticket in tickets]
    return {name: origins.count(name) for name in SIZES if name in origins}


def test_stages_begin_at_their_step() -> None:
    dealt = [counts(tickets) for tickets in play(feed_of(STEPS), range(7), [])]
    assert dealt == [{"easy": 8}] * 3 + [{"easy": 2, "middle": 4, "hard": 2}] * 2 + [{"hard": 8}] * 2


def answered(curriculum: PassRateWeights, step: int, *groups: tuple[str | None, list[float]]) -> dict[str, float]:
    outcomes = came_out(step, ["p"] * len(groups), [rewards for _, rewards in groups])
    curriculum.observe([source for source, _ in groups], outcomes)
    return {name: weight for name, weight in curriculum.weights(step + 1).items() if weight}


def test_the_next_level_begins_when_the_window_is_full_and_right() -> None:
    options = {
        "kind": "pass_rate",
        "levels": [["a", "b"], ["c"], ["d"]],
        "advance_at": 0.75,
        "window": 3,
        "review": 0.2,
    }
    curriculum = PassRateWeights(PassRateCurriculum.model_validate(options), {"a": 3.0, "b": 1.0})
    assert curriculum.weights(0) == {"a": 0.75, "b": 0.25, "c": 0.0, "d": 0.0}
    first = {"a": 0.75, "b": 0.25}
    assert answered(curriculum, 0, ("a", [1.0, 1.0]), ("b", [1.0, 0.0])) == first  # two groups of three
    assert answered(curriculum, 1, ("c", [1.0, 1.0]), (None, [1.0, 1.0])) == first  # of no source of the level
    assert answered(curriculum, 2, ("a", [0.0, 0.0])) == first  # full, and one half
    assert curriculum.metrics() == {"level": 1.0, "level_right": 0.5}
    assert answered(curriculum, 3, ("a", [5.0, 1.0]), ("a", [0.5, 0.5])) == first  # 0, 1, 1/2
    # 1, 1/2, 1: more than three quarters; what is more than right is right, and c before its level counts for nothing.
    second = answered(curriculum, 4, ("a", [1.0, 1.0]), ("c", [1.0]), ("c", [1.0]), ("c", [1.0]))
    assert second == pytest.approx({"a": 0.15, "b": 0.05, "c": 0.8})
    assert curriculum.metrics() == {"level": 2.0}
    assert answered(curriculum, 5, ("a", [0.0])) == second  # review counts for nothing either, and nothing goes back
    third = answered(curriculum, 6, *[("c", [1.0, 1.0])] * 9)
    assert third == pytest.approx({"a": 0.12, "b": 0.04, "c": 0.04, "d": 0.8})
    assert answered(curriculum, 7, *[("d", [1.0, 1.0])] * 9) == third  # the last stays


@pytest.mark.parametrize("order", ["shuffled", "mopps", "signal"])
@pytest.mark.parametrize("curriculum", [STEPS, LEVELS], ids=["steps", "pass_rate"])
@given(cut=st.integers(0, 12), groups=st.integers(1, 9), again=st.booleans())
@settings(max_examples=20, deadline=None)
def test_resume_goes_on_exactly_where_the_saved_feed_stood(
    curriculum: dict[str, Any], order: str, cut: int, groups: int, again: bool
) -> None:
    straight = play(feed_of(curriculum, order), range(13), [], groups)
    first = feed_of(curriculum, order)
    before = play(first, range(cut), [], groups)
    saved = json.loads(json.dumps(first.state()))
    resumed = feed_of(curriculum, order)
    resumed.load_state(saved)
    # The service that comes back tells of the last commit again, or of none.
    resumed.learn(told(SIZE, judged(cut - 2, before[-2]) if cut > 1 and again else None))
    assert before + play(resumed, range(cut, 13), before[-1] if before else [], groups) == straight
    ids = [ticket.group_id for tickets in straight for ticket in tickets]
    assert len(set(ids)) == len(ids)


def test_the_step_says_which_share_of_its_groups_came_from_where() -> None:
    feed = feed_of(LEVELS)
    dealt = play(feed, range(12), [])
    assert counts(dealt[0]) == {"easy": 8} and counts(dealt[-1])["hard"] == 6
    said = feed.mixture([ticket.prompt.prompt_id for ticket in dealt[-1]])
    shares = {name: said[f"feed/share/{name}"] for name in SIZES}
    assert shares == {name: counts(dealt[-1]).get(name, 0) / 8 for name in SIZES}
    assert said["feed/level"] == 3.0
    assert PromptFeed(pool(SIZES), 1, 4).mixture(["easy0"]) == {}


def test_later_levels_may_change_on_a_resume_and_reached_ones_may_not() -> None:
    first = feed_of(LEVELS)
    play(first, range(6), [])
    state = json.loads(json.dumps(first.state()))
    assert state["curriculum"]["reached"] == [["easy"], ["middle"]]
    feed_of(LEVELS | {"advance_at": 0.9, "window": 3, "review": 0.0}).load_state(state)
    with pytest.raises(ValueError, match=r"had come to level 2 of easy < middle; keep those levels as they were"):
        feed_of(LEVELS | {"levels": [["easy"], ["hard"], ["middle"]]}).load_state(state)
    with pytest.raises(ValueError, match=r"curriculum of kind pass_rate .*this run one of kind steps"):
        feed_of(STEPS).load_state(state)


@pytest.mark.parametrize(
    ("curriculum", "weights", "message"),
    [
        (LEVELS | {"levels": [["easi"], ["middle", "hard"]]}, None, r"no source is called `easi`; did you mean easy\?"),
        (LEVELS | {"levels": [["easy"], ["middle"]]}, None, "source `hard` is never dealt; name it, or leave"),
        (LEVELS | {"levels": [["easy"], ["middle", "hard", "easy"]]}, None, "source `easy` is named twice"),
        (LEVELS | {"levels": [["easy", "middle", "hard"], []]}, None, "a level without a source"),
        (LEVELS | {"review": 1.0}, None, "less than 1"),
        (LEVELS | {"advance_at": 0}, None, "greater than 0"),
        (STEPS | {"stages": [{"from_step": 1, "weights": dict.fromkeys(SIZES, 1)}]}, None, "begin at 0"),
        (STEPS | {"stages": [*STEPS["stages"], STEPS["stages"][1]]}, None, "from_step 3 comes behind one from_step 5"),
        (STEPS | {"stages": STEPS["stages"][:1]}, None, "source `middle` is never dealt"),
        (STEPS | {"stages": [{"from_step": 0, "weights": {"easy": 0}}]}, None, "every weight is 0"),
        (STEPS | {"stages": [{"from_step": 0, "weights": {"easy": -1}}]}, None, "greater than or equal to 0"),
        (STEPS, dict.fromkeys(SIZES, 1.0), "leave `weight` out of source `easy`"),
        ({"kind": "pass_rates"}, None, "pass_rate"),
    ],
)
def test_a_curriculum_that_makes_no_sense_is_refused(
    curriculum: dict[str, Any], weights: dict[str, float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(curriculum, weights)

"""Shaping rules that remember: against numbers worked out by hand, and as a checkpoint keeps them."""

import json
from collections import Counter

import numpy as np
import pytest

from actors.shaping.hapo import HapoOptions
from actors.shaping.laser_d import LaserDOptions, levels, right_answers, target_length
from actors.shaping.protocol import ShapingBatch, ShapingOptions
from actors.shaping.shaper import Shaper
from moments_service.messages.batch import Batch
from tests.unit.made_batches import made_batch

pytestmark = pytest.mark.unit

NAN = float("nan")
MAX_TOKENS = 100


def seen(batch: Batch) -> ShapingBatch:
    return ShapingBatch.of(batch, MAX_TOKENS)


def test_hapo_compares_with_the_shortest_right_answer_so_far() -> None:
    rule = HapoOptions().create()
    first = seen(made_batch([[1.0, 1.0, 0.0], [0.0, 0.0, None]], [[40, 30, 5], [5, 5, 5]], prompts=["a", "b"]))
    np.testing.assert_array_equal(rule(first).rewards, first.rewards)
    rule.learn(first)
    later = seen(
        made_batch([[1.0, 1.0, 1.0, 1.0, 0.0], [1.0] * 5], [[15, 30, 60, 45, 60], [9] * 5], prompts=["a", "b"])
    )
    # h = 30: cos(pi / 4), cos(pi / 2), cos(pi) but no less than -0.7, cos(3 pi / 4) likewise. Of `b` nothing right was seen.
    expected = [[1 + np.sqrt(0.5), 1.0, 0.3, 0.3, 0.0], [1.0] * 5]
    found = rule(later)
    np.testing.assert_allclose(found.rewards, expected, atol=1e-12)
    assert found.metrics == {"known_prompts": 0.5}
    everywhere = HapoOptions(applies_to="all", weight=0.5).create()
    everywhere.learn(first)
    wrong = [[1.0 + np.sqrt(0.125), 1.0, 0.65, 0.65, -0.5], [1.0] * 5]
    np.testing.assert_allclose(everywhere(later).rewards, wrong, atol=1e-12)
    rule.learn(later)
    assert rule.state() == {"shortest": {"a": 15, "b": 9}}


def test_laser_d_pays_within_a_target_that_follows_the_right_answers() -> None:
    rule = LaserDOptions(every=2).create()
    rewards = [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    first = seen(made_batch(rewards, [[10, 20, 30], [40, 50, 5], [70, 5, 5]], step=0))
    # Until targets are set all right answers are within them.
    np.testing.assert_allclose(rule(first).rewards, np.array(rewards) * 1.5)
    rule.learn(first)
    rule.learn(seen(made_batch(rewards, [[12, 22, 32], [42, 52, 5], [90, 5, 5]], step=1)))
    # Easy: 10 right answers, two of a group of three: half of them within 30. Medium, one of three: all within 90.
    later = seen(made_batch(rewards, [[29, 30, 31], [30, 31, 5], [90, 91, 5]], step=2))
    found = rule(later)
    np.testing.assert_allclose(found.rewards, [[1.5, 1.5, 1.0], [1.5, 1.0, 0.0], [1.5, 0.0, 0.0]])
    assert found.metrics == {"target_hard": 100.0, "target_medium": 90.0, "target_easy": 30.0}


def test_levels_of_difficulty_are_thirds() -> None:
    rewards = [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, None], [1.0, None, None]]
    assert levels(seen(made_batch(rewards, [[1] * 3] * 5))).tolist() == [2, 1, 0, 2, 2]
    assert [right_answers(level, 8) for level in ("hard", "medium", "easy")] == [1, 2, 5]


def test_a_target_is_the_shortest_length_with_one_right_answer_in_expectation() -> None:
    random = np.random.default_rng(0)
    for right in (1, 2, 5):
        drawn = random.integers(1, 40, 50)
        expected = next(
            length for length in range(1, 41) if np.mean(drawn <= length) * right >= 1 - 1e-12
        )  # tried one by one
        assert target_length(Counter(drawn.tolist()), right) == expected


@pytest.mark.parametrize("options", [HapoOptions(), LaserDOptions(every=3)], ids=lambda options: options.kind)
def test_a_rule_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(options: ShapingOptions) -> None:
    def batch(step: int) -> Batch:
        random = np.random.default_rng(step)
        rewards = random.integers(0, 2, (6, 4)).astype(float).tolist()
        prompts = [f"p{number}" for number in random.integers(0, 5, 6)]
        return made_batch(rewards, random.integers(1, MAX_TOKENS + 1, (6, 4)).tolist(), prompts=prompts, step=step)

    straight = Shaper([options], MAX_TOKENS)
    for step in range(4):
        straight.learn(batch(step))
    resumed = Shaper([options], MAX_TOKENS)
    resumed.load_state(json.loads(json.dumps(straight.state())))
    untold = Shaper([options], MAX_TOKENS)
    for step in range(4, 12):
        expected, found = straight(batch(step)), resumed(batch(step))
        assert found.advantages.tobytes() == expected.advantages.tobytes() and found.metrics == expected.metrics
        for shaper in (straight, resumed):
            shaper.learn(batch(step))
    assert resumed.state() == straight.state() != untold.state()
    assert not np.array_equal(untold(batch(12)).advantages, straight(batch(12)).advantages, equal_nan=True)


def test_a_rule_that_is_new_at_a_resume_begins_with_nothing() -> None:
    shaper = Shaper([HapoOptions()], MAX_TOKENS)
    shaper.load_state({"laser_d": {"targets": {}, "lengths": {}}})
    assert shaper.state() == {"hapo": {"shortest": {}}}

"""Every shaping rule against numbers worked out by hand, or its formula in plain numpy; and how they are added to advantages."""

import numpy as np
import pytest

from actors.shaping.alp import Alp
from actors.shaping.drpo import Drpo
from actors.shaping.grpo_lambda import GrpoLambda
from actors.shaping.hard_truncation import HardTruncation
from actors.shaping.kimi import Kimi
from actors.shaping.protocol import ShapingBatch, ShapingOptions
from actors.shaping.shaper import Shaper, against_the_others
from actors.shaping.soft_overlong import SoftOverlong
from tests.unit.made_batches import Rewards, made_batch

pytestmark = pytest.mark.unit

NAN = float("nan")


def shaped(
    options: ShapingOptions,
    rewards: Rewards,
    lengths: list[list[int]],
    max_tokens: int = 100,
    truncated: list[list[bool]] | None = None,
) -> list[list[float]]:
    """Rewards as one rule with an empty memory makes them, rounded to what can be written down."""
    batch = ShapingBatch.of(made_batch(rewards, lengths, truncated), max_tokens)
    return [[round(value, 6) for value in row] for row in options.create()(batch).rewards.tolist()]


def same(found: list[list[float]], expected: list[list[float]]) -> None:
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=1e-6)


def test_soft_overlong_is_a_slope_before_the_limit() -> None:
    # Limit 100, window 20: nothing up to 80 tokens, (80 - L) / 20 up to 100, -1 from there.
    rewards, lengths = [[1.0, 1.0, 1.0, 1.0, 0.0, None]], [[79, 80, 85, 100, 90, 90]]
    same(shaped(SoftOverlong(), rewards, lengths), [[1.0, 1.0, 0.75, 0.0, 0.0, NAN]])
    same(shaped(SoftOverlong(applies_to="all"), rewards, lengths), [[1.0, 1.0, 0.75, 0.0, -0.5, NAN]])
    own = SoftOverlong(max_tokens=90, window=1 / 3, penalty=0.5)  # nothing up to 60, half a reward from 90
    same(shaped(own, [[1.0, 1.0, 1.0]], [[60, 75, 95]]), [[1.0, 0.75, 0.5]])


def test_soft_overlong_with_dapo_s_own_numbers() -> None:
    dapo = SoftOverlong(applies_to="all", window=4096 / 20480)
    found = shaped(dapo, [[1.0, 1.0, 0.0, 0.0]], [[16384, 18432, 18432, 20480]], max_tokens=20480)
    same(found, [[1.0, 0.5, -0.5, -1.0]])


def test_hard_truncation_takes_the_reward_of_what_is_too_long() -> None:
    rewards, lengths = [[1.0, 1.0, 0.5, -1.0, 1.0, None]], [[60, 61, 100, 100, 30, 100]]
    same(shaped(HardTruncation(max_tokens=60), rewards, lengths), [[1.0, 0.0, 0.0, -1.0, 1.0, NAN]])
    # What ended for want of room was too long, whatever its length.
    cut = [[False, False, True, True, True, True]]
    same(shaped(HardTruncation(), rewards, lengths, truncated=cut), [[1.0, 1.0, 0.0, -1.0, 0.0, NAN]])


def test_kimi_goes_from_the_shortest_to_the_longest() -> None:
    rewards, lengths = (
        [[1.0, 1.0, 0.0, 0.0, None], [1.0, 0.0, None, None, None]],
        [[10, 20, 30, 50, 90], [7, 7, 1, 1, 1]],
    )
    # lam = 0.5 - (L - 10) / 40: 0.5, 0.25, 0, -0.5; a group whose completions are as long has none.
    same(shaped(Kimi(), rewards, lengths)[:1], [[1.5, 1.25, 0.0, 0.0, NAN]])
    same(shaped(Kimi(applies_to="all"), rewards, lengths)[:1], [[1.5, 1.25, 0.0, -0.5, NAN]])
    same(shaped(Kimi(weight=0.4), rewards, lengths)[:1], [[1.2, 1.1, 0.0, 0.0, NAN]])
    same(shaped(Kimi(applies_to="all"), rewards, lengths)[1:], [[1.0, 0.0, NAN, NAN, NAN]])


def test_alp_charges_for_tokens_by_how_often_a_prompt_is_solved() -> None:
    rewards, lengths = [[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]], [[10, 20, 40, 80], [10, 20, 40, 80]]
    # A price of 0.01 * 3 / 4 a token where three of four are right, of 0.01 / 4 where none is.
    same(shaped(Alp(beta=0.01), rewards, lengths), [[0.925, 0.85, 0.7, 0.0], [0.0, 0.0, 0.0, 0.0]])
    everywhere = [[0.925, 0.85, 0.7, -0.6], [-0.025, -0.05, -0.1, -0.2]]
    same(shaped(Alp(beta=0.01, applies_to="all"), rewards, lengths), everywhere)


def test_grpo_lambda_shortens_the_groups_that_are_right_most_often() -> None:
    rewards = [[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0], [None, 1.0, 1.0, 1.0]]
    lengths = [[10, 20, 30, 40], [10, 20, 30, 99], [10, 20, 30, 99], [1, 8, 8, 8]]
    # The last is always right, the second comes before the third: z = -1, 0, 1 there, and all lengths alike in the last.
    low, high = 1 / (1 + np.exp(1.0)), 1 / (1 + np.exp(-1.0))
    expected = [rewards[0], [1 - 0.4 * low, 0.8, 1 - 0.4 * high, 0.0], rewards[2], [NAN, 0.8, 0.8, 0.8]]
    same(shaped(GrpoLambda(top=0.5, alpha=0.4), rewards, lengths), expected)
    # One of the three at least, and with all of them it is the rule of Arora and Zanette.
    found = shaped(GrpoLambda(top=0.01, alpha=0.4), rewards[:3], lengths[:3])
    same(found, [rewards[0], expected[1], rewards[2]])
    same(shaped(GrpoLambda(top=1.0, alpha=0.4), rewards[2:3], lengths[2:3]), [expected[1]])


def test_drpo_weighs_right_answers_by_their_length() -> None:
    batch = made_batch([[1.0, 1.0, 0.0], [0.0, 0.0, None]], [[50, 60, 10], [10, 90, 100]])
    found = Shaper([Drpo(temperature=0.1)], 100)(batch)
    raw = np.exp(np.array([0.5, 0.4]) / 0.1)
    weights = np.array([[*(raw / raw.mean()), 1.0], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(found.advantages, batch.advantages * weights)
    assert found.metrics["shaping/touched"] == 2 / 5 and found.metrics["shaping/mean"] == 0.0
    # A temperature that makes exp() overflow makes no weight infinite.
    sharp = Shaper([Drpo(temperature=1e-4)], 100)(batch)
    np.testing.assert_allclose(sharp.advantages[0], batch.advantages[0] * [2.0, 0.0, 1.0])


def test_what_is_added_is_compared_with_the_others_of_the_group() -> None:
    batch = made_batch([[1.0, 1.0, 0.0, None], [1.0, None, None, None]], [[90, 50, 50, 100], [90, 1, 1, 1]])
    found = Shaper([SoftOverlong()], 100)(batch)
    # d = (-0.5, 0, 0): the first is half a reward below the mean of the others, each other a quarter above.
    added = np.array([[-0.5, 0.25, 0.25, NAN], [0.0, NAN, NAN, NAN]])
    np.testing.assert_allclose(found.advantages, batch.advantages + added)
    assert found.metrics["shaping/mean"] == pytest.approx(-1.0 / 4)  # of four rewards, two at 90 tokens
    assert found.metrics["shaping/touched"] == pytest.approx(2 / 4)
    mean_abs = np.nanmean(np.abs(batch.advantages + added))
    assert found.metrics["shaping/advantage_mean_abs"] == pytest.approx(mean_abs)


def test_what_a_whole_group_shares_pushes_none_of_it() -> None:
    batch = made_batch([[1.0, 1.0, 1.0]], [[90, 90, 90]])
    found = Shaper([SoftOverlong()], 100)(batch)
    np.testing.assert_allclose(found.advantages, batch.advantages, atol=1e-15)
    assert found.metrics["shaping/touched"] == 1.0


def test_the_others_are_as_a_loop_finds_them() -> None:
    values = np.random.default_rng(0).normal(size=(5, 4))
    values[0, 1] = values[1, 1:] = values[2] = NAN
    expected = np.full_like(values, NAN)
    for row in range(5):
        there = [i for i in range(4) if not np.isnan(values[row, i])]
        for i in there:
            others = [values[row, j] for j in there if j != i]
            expected[row, i] = values[row, i] - np.mean(others) if others else 0.0
    np.testing.assert_allclose(against_the_others(values), expected)


def test_without_rules_a_batch_goes_through_as_it_is() -> None:
    batch = made_batch([[1.0, 0.0]], [[3, 4]])
    assert Shaper([], 100)(batch) is batch

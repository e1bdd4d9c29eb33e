"""Every shaping rule against numbers worked out by hand, or its formula in plain numpy; and how they are added to advantages."""

import numpy as np
import pytest

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

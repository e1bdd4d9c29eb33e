"""BV-Blend against closed forms and an independent float64 oracle written from the formula sheet."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moments_service.blend import exponential_confidence, group_moments, standard_error
from moments_service.config import BlendConfig, MomentsConfig
from moments_service.estimators import Advantages, RewardBatch
from moments_service.estimators.bv_blend import bv_blend_paper, bv_blend_safe
from moments_service.estimators.grpo import grpo
from moments_service.messages.groups import PolicyMove
from moments_service.moments import (
    ClusterMoments,
    CommittedRewards,
    DecayedCounts,
    History,
    PaperMoments,
)

pytestmark = pytest.mark.unit

MISSING = None
rewards_of_a_group = st.lists(st.one_of(st.none(), st.floats(-2, 2, width=32)), min_size=1, max_size=8)
batches = st.lists(st.tuples(st.integers(0, 3), rewards_of_a_group), min_size=1, max_size=8)


def padded(rows: list[list[float | None]]) -> np.ndarray:
    width = max(len(row) for row in rows)
    return np.array([[math.nan if r is None else r for r in row] + [math.nan] * (width - len(row)) for row in rows])


def history(mean: float, variance: float, mass: float, seen: bool = True, rows: int = 1) -> History:
    values = (np.full(rows, value) for value in (mean, variance, mass))
    return History(*values, seen=np.full(rows, seen), within=np.full(rows, variance), between=np.zeros(rows))


def batch_of(rewards: np.ndarray, past: History) -> RewardBatch:
    return RewardBatch(rewards, np.ones_like(rewards), tuple(str(m) for m in range(len(rewards))), past)


def paper(rewards: np.ndarray, past: History) -> Advantages:
    return bv_blend_paper(batch_of(rewards, past), BlendConfig(variant="paper", temperature=0.1))


def safe(rewards: np.ndarray, past: History, max_advantage: float = 5.0) -> Advantages:
    return bv_blend_safe(batch_of(rewards, past), BlendConfig(temperature=0.1, max_advantage=max_advantage))


def fold(moments: ClusterMoments, clusters: object, rewards: np.ndarray, version: int, kl: float | None = None) -> None:
    move = None if kl is None else PolicyMove(kl, 0.0)
    moments.fold(CommittedRewards(np.array(clusters), rewards, ("",) * len(rewards), version, move))


# --- closed forms of the formula sheet, A.7 ------------------------------------------------------------------------


@pytest.mark.parametrize("reward", [0.0, 1.0])
@pytest.mark.parametrize("group_size", [1, 2, 8])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_uniform_group_gets_its_closed_form(reward: float, group_size: int, p: float) -> None:
    mass, temperature = 64.0, 0.1
    w = math.exp(-math.sqrt(p * (1 - p) / mass) / temperature)
    expected = -math.sqrt(w * p / (1 - p)) if reward == 0 else math.sqrt(w * (1 - p) / p)
    advantages = paper(np.full((1, group_size), reward), history(p, p * (1 - p), mass))
    np.testing.assert_allclose(advantages.values, expected, rtol=1e-6)


def test_the_examples_of_the_formula_sheet() -> None:
    half = paper(np.ones((1, 8)), history(0.5, 0.25, 64))
    assert half.weight[0] == pytest.approx(0.535, abs=5e-4)
    assert half.values[0, 0] == pytest.approx(0.732, abs=5e-4)
    # The sheet gives -2.49 for p = .9 and all wrong.
    assert paper(np.zeros((1, 8)), history(0.9, 0.09, 64)).values[0, 0] == pytest.approx(-2.49, abs=5e-3)


@pytest.mark.parametrize(("updates", "expected"), [(4, 37.6), (8, 382.0)])
def test_the_paper_variant_blows_up_after_a_collapse_as_the_sheet_says(updates: int, expected: float) -> None:
    moments = PaperMoments(1, update_rate=0.9, initial_mass=64, initial_variance=0.25)
    cluster = np.zeros(1, dtype=np.int64)
    for step in range(updates + 1):
        fold(moments, cluster, np.zeros((1, 64)), step)
    lucky = np.array([[1.0] + [0.0] * 7])
    assert paper(lucky, moments.history(cluster)).values[0, 0] == pytest.approx(expected, rel=0.01)


def test_the_safe_variant_is_bounded_in_the_same_collapse() -> None:
    never_solved = DecayedCounts(1, retention=0.95, prior=(1.0, 1.0))
    cluster = np.zeros(1, dtype=np.int64)
    fold(never_solved, cluster, np.zeros((1, 64)), 0)
    past = never_solved.history(cluster)
    lucky = np.array([[1.0] + [0.0] * 7])
    clipped = safe(lucky, past, 5.0).values[0]
    unclipped = safe(lucky, past, 1e9).values[0]
    assert clipped[0] == 5.0
    assert unclipped[0] == pytest.approx(5.6, abs=0.05)
    assert unclipped[1] == pytest.approx(-0.18, abs=0.005)
    assert safe(np.zeros((1, 8)), past).values[0, 0] == pytest.approx(-0.11, abs=0.005)


def test_full_trust_is_historical_reinforce_and_no_trust_is_the_group() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 0.0]])
    trusted = paper(rewards, history(0.3, 0.21, 1e30))
    np.testing.assert_allclose(trusted.values, (rewards - 0.3) / math.sqrt(0.21), rtol=1e-6)
    unseen = paper(rewards, history(0.3, 0.21, 64, seen=False))
    np.testing.assert_allclose(unseen.values, (rewards - 0.25) / rewards.std(), rtol=1e-6)
    assert unseen.weight[0] == 0.0


def test_confidence_falls_with_variance_and_rises_with_mass() -> None:
    spread = exponential_confidence(standard_error(np.linspace(0, 1, 20), np.full(20, 8.0)), 0.1)
    counted = exponential_confidence(standard_error(np.full(20, 0.25), np.arange(1.0, 21.0)), 0.1)
    assert spread[0] == 1.0 and (np.diff(spread) < 0).all()
    assert (np.diff(counted) > 0).all() and ((counted > 0) & (counted < 1)).all()


def test_binary_variance_of_the_paper_store_is_bernoulli_plus_what_is_left_of_the_prior() -> None:
    rate, prior = 0.3, 0.25
    moments = PaperMoments(1, rate, 8, prior)
    cluster = np.zeros(1, dtype=np.int64)
    generator = np.random.default_rng(0)
    for n in range(10):
        fold(moments, cluster, generator.integers(0, 2, (1, 8)).astype(float), n)
        now = moments.history(cluster)
        first = float(moments.state()["mean"][0])
        # The first fold stores mean^2 + prior, which differs from the identity by mean - mean^2 of that batch.
        if n == 0:
            gap = first - first**2
        expected = first * (1 - first) + (prior - gap) * (1 - rate) ** n
        assert now.variance[0] == pytest.approx(max(expected, 0.0), abs=1e-12)


# --- the oracle ----------------------------------------------------------------------------------------------------


def oracle(rows: list[list[float | None]], past: History, config: BlendConfig) -> list[list[float]]:
    """BV-Blend one group at a time in plain Python, from METHODS A.2 and A.8."""
    result = []
    for m, row in enumerate(rows):
        known = [r for r in row if r is not None]
        mu = math.fsum(known) / len(known) if known else 0.0
        var = math.fsum((r - mu) ** 2 for r in known) / len(known) if known else 0.0
        w = (
            math.exp(-math.sqrt(past.variance[m]) / math.sqrt(past.mass[m] + 1e-8) / config.temperature)
            if past.seen[m]
            else 0.0
        )
        b = w * past.mean[m] + (1 - w) * mu
        s2 = w * past.variance[m] + (1 - w) * var
        if config.variant == "safe":
            s2 += w * (1 - w) * (past.mean[m] - mu) ** 2
        values = [(r - b) / (math.sqrt(s2) + 1e-8) for r in known]
        if config.variant == "safe":
            values = [max(-config.max_advantage, min(config.max_advantage, v)) for v in values]
        result.append(values)
    return result


@pytest.mark.parametrize("variant", ["paper", "safe"])
@given(first=batches, second=batches)
def test_advantages_equal_the_oracle(variant: str, first: list, second: list) -> None:
    config = BlendConfig(variant=variant)  # type: ignore[arg-type]
    moments = MomentsConfig(estimator=config).create_moments(4)
    fold(moments, np.array([k for k, _ in first]), padded([row for _, row in first]), 0)
    past = moments.history(np.array([k for k, _ in second]))
    rows = [row for _, row in second]
    found = config.create()(batch_of(padded(rows), past)).values
    for values, row, expected in zip(found, rows, oracle(rows, past, config), strict=True):
        mine = [v for v, r in zip(values, row, strict=False) if r is not None]
        # Where the scale vanishes, (r - b) / 1e-8 turns rounding of the mean into 1e-8 / 1e-16 of anything.
        np.testing.assert_allclose(mine, expected, rtol=1e-6, atol=1e-6)


@given(batches, st.randoms())
def test_folding_does_not_depend_on_the_order_or_the_sharding_of_groups(batch: list, random: object) -> None:
    shuffled = list(batch)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for config in (BlendConfig(variant="paper"), BlendConfig(variant="safe")):
        straight, mixed = (
            MomentsConfig(estimator=config).create_moments(4),
            MomentsConfig(estimator=config).create_moments(4),
        )
        for moments, order in ((straight, batch), (mixed, shuffled)):
            fold(moments, np.array([k for k, _ in order]), padded([row for _, row in order]), 3)
        for name, array in straight.state().items():
            np.testing.assert_allclose(mixed.state()[name], array, rtol=1e-12, atol=1e-12)


@given(batches)
def test_groups_of_one_batch_do_not_see_each_other(batch: list) -> None:
    rows, clusters = [row for _, row in batch], np.array([k for k, _ in batch])
    config = BlendConfig()
    moments = MomentsConfig(estimator=config).create_moments(4)
    fold(moments, np.array([0, 1]), np.array([[1.0, 0.0], [0.0, 0.0]]), 0)
    estimate = config.create()
    # One width for both: how numpy sums a row depends on how wide it is, in the last bit.
    table = padded(rows)
    together = estimate(batch_of(table, moments.history(clusters))).values
    for m in range(len(rows)):
        alone = estimate(batch_of(table[m : m + 1], moments.history(clusters[m : m + 1]))).values[0]
        np.testing.assert_array_equal(together[m], alone)


def test_decayed_counts_fade_with_policy_versions_and_report_kish_mass() -> None:
    moments = DecayedCounts(2, retention=0.5, prior=(1.0, 1.0))
    fold(moments, np.array([0]), np.array([[1.0, 1.0]]), 1)
    fold(moments, np.array([1]), np.array([[0.0, 0.0]]), 3)
    past = moments.history(np.array([0, 1]))
    weight = 0.5**2
    assert past.mean[0] == pytest.approx((2 * weight + 1) / (2 * weight + 2))
    assert past.mean[1] == pytest.approx(1 / 4)
    # Two rewards of equal weight, seen two versions ago.
    assert past.mass[0] == pytest.approx(2.0 * weight)
    assert past.mass[1] == pytest.approx(2.0)


def test_non_binary_rewards_keep_their_own_variance() -> None:
    moments = DecayedCounts(1, retention=0.9, prior=(0.0, 0.0))
    fold(moments, np.array([0]), np.array([[0.25, 0.75, -1.0]]), 0)
    past = moments.history(np.array([0]))
    assert past.variance[0] == pytest.approx(np.var([0.25, 0.75, -1.0]))


def test_saved_moments_of_another_kind_are_refused() -> None:
    paper, safe = (
        MomentsConfig(estimator=BlendConfig(variant="paper")).create_moments(4),
        MomentsConfig(estimator=BlendConfig(variant="safe")).create_moments(4),
    )
    with pytest.raises(ValueError, match="keep moments"):
        safe.load_state(paper.state())
    with pytest.raises(ValueError, match="codebook"):
        MomentsConfig(estimator=BlendConfig()).create_moments(5).load_state(safe.state())


# --- GRPO ----------------------------------------------------------------------------------------------------------


@given(st.lists(rewards_of_a_group, min_size=1, max_size=6))
def test_grpo_equals_its_oracle(rows: list) -> None:
    found = grpo(batch_of(padded(rows), history(0, 0, 0, seen=False, rows=len(rows)))).values
    for values, row in zip(found, rows, strict=True):
        known = [r for r in row if r is not None]
        if len(known) >= 2:
            expected = (np.array(known) - np.mean(known)) / (np.std(known, ddof=1) + 1e-6)
        else:
            expected = np.array(known) / (1 + 1e-6)
        mine = [v for v, r in zip(values, row, strict=False) if r is not None]
        np.testing.assert_allclose(mine, expected, rtol=1e-6, atol=1e-8)


def test_group_moments_ignore_missing_rewards() -> None:
    mean, variance, count = group_moments(padded([[1.0, None, 0.0], [None, None, None]]))
    np.testing.assert_allclose(mean, [0.5, 0.0])
    np.testing.assert_allclose(variance, [0.25, 0.0])
    np.testing.assert_allclose(count, [2, 0])

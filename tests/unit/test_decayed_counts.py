"""The fading sums against a direct computation: every group ever folded in, with the weight that age leaves of it."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moments_service.config import BlendConfig
from moments_service.messages.groups import PolicyMove
from moments_service.moments import CommittedRewards, DecayedCounts, History
from moments_service.moments.create import create_moments

pytestmark = pytest.mark.unit

CLUSTERS = 3
RETENTION = 0.8
HALF_LIFE = 0.05
SUMS = ("count", "total", "squares", "groups", "group_means", "squared_group_means", "within", "inverse_sizes")

rewards = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-2, 2, width=32))
groups = st.tuples(st.integers(0, CLUSTERS - 1), st.lists(st.one_of(st.none(), rewards), min_size=1, max_size=5))
folds = st.lists(
    st.tuples(st.lists(groups, min_size=1, max_size=4), st.integers(1, 3), st.one_of(st.none(), st.floats(0, 0.1))),
    min_size=1,
    max_size=5,
)
"""Groups with their clusters, by how much the policy version rises, and the KL of the step."""


@dataclass
class Folded:
    cluster: int
    rewards: np.ndarray
    version: int
    kl: float
    """Of all steps up to and including the one that trained on this group."""


def folded(moments: DecayedCounts, steps: list) -> tuple[list[Folded], int, float]:
    """Fold the steps in; returns every group with a reward, the version and the KL at the end."""
    past, version, moved = [], 0, 0.0
    for batch, rise, kl in steps:
        version, moved = version + rise, moved + (kl or 0.0)
        width = max(len(row) for _, row in batch)
        table = np.full((len(batch), width), np.nan)
        for m, (cluster, row) in enumerate(batch):
            table[m, : len(row)] = [math.nan if r is None else r for r in row]
            known = np.array([r for r in row if r is not None])
            if len(known):
                past.append(Folded(cluster, known, version, moved))
        move = None if kl is None else PolicyMove(kl, 0.0)
        clusters = np.array([cluster for cluster, _ in batch])
        moments.fold(CommittedRewards(clusters, table, ("",) * len(batch), version, move))
    return past, version, moved


def left(group: Folded, version: int, moved: float, half_life: float | None) -> float:
    """The weight of a group once the policy has come to `version` and has moved by `moved` in all."""
    weight = RETENTION ** (version - group.version)
    return weight if half_life is None else weight * 0.5 ** ((moved - group.kl) / half_life)


def everything(moments: DecayedCounts) -> History:
    return moments.history(np.arange(len(moments)))


@pytest.mark.parametrize("half_life", [None, HALF_LIFE])
@pytest.mark.parametrize("prior", [(1.0, 1.0), (0.5, 2.0), (0.0, 0.0)])
@settings(max_examples=50, deadline=None)
@given(steps=folds)
def test_history_is_that_of_the_weighted_groups(
    steps: list, prior: tuple[float, float], half_life: float | None
) -> None:
    moments = DecayedCounts(CLUSTERS, RETENTION, prior, half_life)
    past, version, moved = folded(moments, steps)
    found = everything(moments)
    ones, zeros = prior
    strength = ones + zeros
    for cluster in range(CLUSTERS):
        mine = [group for group in past if group.cluster == cluster]
        assert found.seen[cluster] == bool(mine)
        if not mine:
            assert found.mass[cluster] == 0.0
            continue
        weights = np.array([left(group, version, moved, half_life) for group in mine])
        of_each = np.concatenate([np.full(len(g.rewards), w) for g, w in zip(mine, weights, strict=True)])
        every = np.concatenate([g.rewards for g in mine])
        # The prior is rewards of 1 and of 0 beside them.
        values, counts = np.append(every, [1.0, 0.0]), np.append(of_each, [ones, zeros])
        mean = np.average(values, weights=counts)
        close = {"rtol": 1e-9, "atol": 1e-9}
        np.testing.assert_allclose(found.mean[cluster], mean, **close)
        np.testing.assert_allclose(found.variance[cluster], np.average((values - mean) ** 2, weights=counts), **close)

        last = mine[-1]
        at_last = np.concatenate([np.full(len(g.rewards), left(g, last.version, last.kl, half_life)) for g in mine])
        kish = at_last.sum() ** 2 / (at_last**2).sum()
        np.testing.assert_allclose(found.mass[cluster], kish * left(last, version, moved, half_life), **close)

        deviations = sum(w * ((g.rewards - g.rewards.mean()) ** 2).sum() for g, w in zip(mine, weights, strict=True))
        freedom = sum(w * (len(g.rewards) - 1) for g, w in zip(mine, weights, strict=True)) + strength
        expected = ones * zeros / (strength * (strength + 1)) if strength else 0.0
        within = (deviations + strength * expected) / freedom if freedom > 0 else 0.0
        np.testing.assert_allclose(found.within[cluster], within, **close)

        means = np.array([g.rewards.mean() for g in mine])
        centre = np.average(means, weights=weights)
        noise = within * np.average([1 / len(g.rewards) for g in mine], weights=weights)
        between = max(np.average((means - centre) ** 2, weights=weights) - noise, 0.0)
        np.testing.assert_allclose(found.between[cluster], between, **close)


def test_within_and_between_tell_unlike_prompts_from_noise() -> None:
    unlike, alike = DecayedCounts(1, 0.95, (1.0, 1.0)), DecayedCounts(1, 0.95, (1.0, 1.0))
    extremes = [(0, [1.0] * 8), (0, [0.0] * 8)] * 8
    coins = [(0, [1.0, 0.0] * 4)] * 16
    folded(unlike, [(extremes, 1, None)])
    folded(alike, [(coins, 1, None)])
    assert everything(unlike).between[0] > 0.2 and everything(unlike).within[0] < 0.01
    assert everything(alike).between[0] == 0.0 and everything(alike).within[0] > 0.25
    assert everything(unlike).variance[0] == pytest.approx(everything(alike).variance[0]) == pytest.approx(0.25)


def test_history_halves_as_the_policy_moves_by_the_half_life() -> None:
    moments = DecayedCounts(2, retention=0.999999, prior=(0.0, 0.0), kl_half_life=0.1)
    folded(moments, [([(0, [1.0] * 8)], 1, 0.7)])
    # What moved the policy before or by the step that trained on a group does not age the group.
    np.testing.assert_allclose(everything(moments).mass[0], 8.0, rtol=1e-5)
    for kl in (0.04, 0.06):
        clusters, table = np.array([1]), np.array([[0.0]])
        moments.fold(CommittedRewards(clusters, table, ("",), 1, PolicyMove(kl, 9.0)))
    np.testing.assert_allclose(everything(moments).mass[0], 4.0, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(steps=folds, more=st.integers(0, 3))
def test_growing_keeps_what_is_known_and_adds_unseen_clusters(steps: list, more: int) -> None:
    moments = DecayedCounts(CLUSTERS, RETENTION, (1.0, 1.0), HALF_LIFE)
    folded(moments, steps)
    before = everything(moments)
    moments.grow(CLUSTERS + more)
    assert len(moments) == CLUSTERS + more
    after = everything(moments)
    for name in ("mean", "variance", "mass", "seen", "within", "between"):
        np.testing.assert_array_equal(getattr(after, name)[:CLUSTERS], getattr(before, name))
    assert not after.seen[CLUSTERS:].any() and not after.mass[CLUSTERS:].any()
    with pytest.raises(ValueError, match="cannot shrink"):
        moments.grow(CLUSTERS - 1)


@settings(max_examples=50, deadline=None)
@given(steps=folds, share=st.floats(0.01, 1.0))
def test_a_transfer_loses_nothing(steps: list, share: float) -> None:
    moments = DecayedCounts(CLUSTERS, RETENTION, (1.0, 1.0), HALF_LIFE)
    past, version, moved = folded(moments, steps)
    moments.transfer(source=0, target=2, share=share)
    state = moments.state()

    def direct(cluster: int) -> dict[str, float]:
        mine = [(g.rewards, left(g, version, moved, HALF_LIFE)) for g in past if g.cluster == cluster]
        return {
            "count": sum(w * len(r) for r, w in mine),
            "total": sum(w * r.sum() for r, w in mine),
            "squares": sum(w * (r**2).sum() for r, w in mine),
            "groups": sum(w for _, w in mine),
            "group_means": sum(w * r.mean() for r, w in mine),
            "squared_group_means": sum(w * r.mean() ** 2 for r, w in mine),
            "within": sum(w * ((r - r.mean()) ** 2).sum() for r, w in mine),
            "inverse_sizes": sum(w / len(r) for r, w in mine),
            # Squared up to the newest group; since then they fade like the counts, and the mass with them.
            "squared_weights": sum(w**2 * len(r) for r, w in mine) / max((w for _, w in mine), default=1.0),
        }

    source, target = direct(0), direct(2)
    for name in (*SUMS, "squared_weights"):
        np.testing.assert_allclose(state[name][0], (1 - share) * source[name], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(state[name][2], target[name] + share * source[name], rtol=1e-9, atol=1e-12)
    # Both are as of now, so that later fading starts for both from here.
    assert state["version"][0] == state["version"][2] == version
    if share == 1.0:
        assert not everything(moments).seen[0]


def test_mass_that_faded_stays_faded_when_a_cluster_is_carried_over_or_split() -> None:
    """Kish's n^2 / q does not change when all weights shrink alike; what was forgotten must not come back as trusted."""
    for change in (lambda moments: moments.carry_over(1.0), lambda moments: moments.transfer(0, 1, 0.25)):
        moments = DecayedCounts(CLUSTERS, 0.9, (1.0, 1.0))
        moments.fold(CommittedRewards(np.zeros(32, dtype=np.int64), np.ones((32, 4)), ("p",) * 32, 1))
        moments.fold(CommittedRewards(np.full(1, 2), np.ones((1, 1)), ("p",), 50))
        before = everything(moments).mass
        assert 0 < before[0] < 1.0
        change(moments)
        after = everything(moments).mass
        np.testing.assert_allclose(after[[0, 1]].sum(), before[0])
        np.testing.assert_allclose(after[2], before[2])


@pytest.mark.parametrize("kind", ["decayed", "paper"])
def test_rewards_far_from_zero_keep_their_variance(kind: str) -> None:
    rng = np.random.default_rng(0)
    rows = [(rng.integers(0, CLUSTERS, 6), (rng.random((6, 4)) < 0.4).astype(float)) for _ in range(5)]
    found = []
    for offset in (0.0, 1e8):
        moments = create_moments(kind, BlendConfig(), CLUSTERS)  # type: ignore[arg-type]
        for step, (clusters, rewards) in enumerate(rows):
            moments.fold(CommittedRewards(clusters, rewards + offset, ("p",) * 6, step))
        found.append(moments.history(np.arange(CLUSTERS)))
        both = create_moments(kind, BlendConfig(), CLUSTERS)  # type: ignore[arg-type]
        moments.carry_over(1.0)
        both.absorb(moments)
        both.absorb(moments)
        assert both.history(np.arange(CLUSTERS)).mean == pytest.approx(
            moments.history(np.arange(CLUSTERS)).mean, abs=0.1
        )
    near, far = found
    np.testing.assert_allclose(far.variance, near.variance, atol=0.2)
    assert (far.variance > 0.05).all() and (far.within > 0.02).all()
    np.testing.assert_allclose(far.mean - 1e8, near.mean, atol=0.6)

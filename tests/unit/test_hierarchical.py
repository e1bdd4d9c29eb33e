"""The hierarchical estimator: against plain Python one completion at a time, and what it promises of any history."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moments_service.clusters import Codebook, PromptSet
from moments_service.clusters.labels import fit_labels
from moments_service.config import MomentsConfig
from moments_service.estimators import RewardBatch
from moments_service.estimators.hierarchical import LEAST_SCALE, PRIOR_REWARDS, Hierarchical, HierarchicalOptions
from moments_service.estimators.naming import configured
from moments_service.moments import CommittedRewards, DecayedCounts, TrackedMeans
from moments_service.moments.leave_one_out import PRIOR_GROUPS, TrackedHistory
from moments_service.moments.regions import expected_of_others
from moments_service.offline.efficiency import Alignment
from moments_service.state import MomentsState

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("error::RuntimeWarning")]

CLUSTERS = 3
Rows = list[list[float | None]]

reward = st.one_of(st.none(), st.sampled_from([0.0, 1.0]), st.floats(-2, 2, width=16))
group = st.tuples(st.lists(reward, min_size=1, max_size=6), st.integers(0, CLUSTERS - 1))
batches = st.lists(group, min_size=1, max_size=6)


def table(rows: Rows) -> np.ndarray:
    width = max(map(len, rows))
    return np.array([[math.nan if r is None else r for r in row] + [math.nan] * (width - len(row)) for row in rows])


def batch_of(state: MomentsState, rewards: np.ndarray, clusters: np.ndarray, prompts: tuple[str, ...]) -> RewardBatch:
    return RewardBatch(rewards, np.ones_like(rewards), prompts, state.history(clusters), clusters)


def experienced(seed: int = 0, spec: str = "hierarchical", scale: float = 1.0, offset: float = 0.0) -> MomentsState:
    """A state that has seen ten batches of binary rewards of three unlike clusters."""
    state, random = MomentsState(configured(MomentsConfig(), spec), CLUSTERS), np.random.default_rng(seed)
    for step in range(10):
        clusters = random.integers(0, CLUSTERS, 8)
        rewards = (random.random((8, 4)) < 0.1 + 0.3 * clusters[:, None]).astype(float)
        names = tuple(f"{step}:{row}" for row in range(8))
        state.fold(step, CommittedRewards(clusters, scale * rewards + offset, names, step + 1))
    return state


def expected(history: TrackedHistory, groups: list, scale: str) -> Rows:
    """Advantages by the definition, with sums over the others written out. Without own past."""
    everyone = [([r for r in row if r is not None], cluster) for row, cluster in groups]
    means = [sum(row) / len(row) if row else 0.0 for row, _ in everyone]
    squares = [sum((r - mean) ** 2 for r in row) for (row, _), mean in zip(everyone, means, strict=True)]
    seen = [r for row, _ in everyone for r in row]
    reach = max([history.highest, *seen]) - min([history.lowest, *seen])
    advantages: Rows = []
    for m, (row, cluster) in enumerate(everyone):
        others = [g for g in range(len(everyone)) if g != m and everyone[g][0]]
        near = [g for g in others if everyone[g][1] == cluster]
        freedom = {g: len(everyone[g][0]) - 1 for g in others}

        def shrunk(total: float, number: float, pooled: float) -> float:
            return (total + PRIOR_GROUPS * pooled) / (number + PRIOR_GROUPS)

        pool = history.pooled["freedom"] + sum(freedom.values())
        pooled = (history.pooled["squares"] + sum(squares[g] for g in others)) / pool if pool > 0 else 0.0
        within = shrunk(
            history.squares[m] + sum(squares[g] for g in near),
            history.freedom[m] + sum(freedom[g] for g in near),
            pooled,
        )
        sampling = sum(1 / len(everyone[g][0]) for g in others) / max(len(others), 1)
        centre = sum(means[g] for g in others) / max(len(others), 1)
        scatter = sum((means[g] - centre) ** 2 for g in others) / max(len(others) - 1, 1)
        apart = max(scatter - within * sampling, 0.0)
        between = max(
            shrunk(
                history.misses[m],
                history.groups[m],
                max(shrunk(history.pooled["misses"], history.pooled["groups"], apart), 0.0),
            ),
            0.0,
        )
        if history.pooled["groups"] > 0:
            centre, spread = float(history.centre[m]), float(history.spread[m])
        else:
            spread = apart / 2
        noise = between + within * (sum(1 / len(everyone[g][0]) for g in near) / max(len(near), 1))
        known, now = spread * history.precision[m], spread * len(near) / noise if noise > 0 else 0.0
        total = 1 + known + now
        near_mean = sum(means[g] for g in near) / max(len(near), 1)
        prior = (centre + known * history.level[m] + now * near_mean) / total
        error = spread / total + between
        evidence = history.pooled["freedom"] + history.pooled["groups"]
        found = []
        for i, r in enumerate(row):
            rest = [x for j, x in enumerate(row) if j != i]
            if not rest and not others and history.pooled["groups"] == 0:
                found.append(0.0)
                continue
            local = within / len(rest) if rest else math.inf
            trust = 1.0 if not rest else (local / (local + error) if local + error > 0 else 0.5)
            trust = trust if others or history.pooled["groups"] > 0 else 0.0
            own = sum(rest) / len(rest) if rest else 0.0
            guess = (evidence * (within + trust * error) + PRIOR_REWARDS * reach**2 / 4) / (evidence + PRIOR_REWARDS)
            unit = max(math.sqrt(guess), LEAST_SCALE * reach) if scale != "none" and 0 < reach < math.inf else 1.0
            found.append((r - trust * prior - (1 - trust) * own) / unit)
        values = iter(found)
        advantages.append([None if r is None else next(values) for r in groups[m][0]])
    return advantages


@pytest.mark.parametrize("scale", ["cluster", "none"])
@settings(max_examples=60, deadline=None)
@given(groups=batches, seen=st.booleans())
def test_advantages_equal_the_definition(scale: str, groups: list, seen: bool) -> None:
    spec = f"hierarchical:scale={scale}"
    state = experienced(spec=spec) if seen else MomentsState(configured(MomentsConfig(), spec), CLUSTERS)
    clusters = np.array([cluster for _, cluster in groups])
    batch = batch_of(state, table([row for row, _ in groups]), clusters, tuple(map(str, range(len(groups)))))
    assert isinstance(batch.history, TrackedHistory)
    found = state.estimate(batch)
    for m, row in enumerate(expected(batch.history, groups, scale)):
        for i, advantage in enumerate(row):
            assert advantage is None or found.values[m, i] == pytest.approx(advantage, rel=1e-6, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    rewards=st.lists(st.sampled_from([0.0, 1.0]), min_size=24, max_size=24),
    place=st.tuples(st.integers(0, 5), st.integers(0, 3)),
    seen=st.booleans(),
)
def test_nothing_of_a_reward_is_in_its_own_baseline_or_scale(rewards: list, place: tuple[int, int], seen: bool) -> None:
    """So that no gradient is biased: another reward there changes the advantage by what the reward changed, over the same scale."""
    state = experienced() if seen else MomentsState(MomentsConfig(), CLUSTERS)
    one = np.array(rewards).reshape(6, 4)
    other = one.copy()
    other[place] = 1.0 - other[place]
    if min(one.max(), other.max()) == 0.0 or max(one.min(), other.min()) == 1.0:
        return  # the range of rewards, which is the unit of scale, would be known by this very reward
    clusters, names = np.array([0, 1, 0, 2, 1, 0]), tuple("abcdef")
    first, second = (state.estimate(batch_of(state, rewards, clusters, names)) for rewards in (one, other))
    # A slope of 1 / scale that no reward changes: two rewards there, and the middle of their advantages is that of their middle.
    middle = one.copy()
    middle[place] = 0.5
    third = state.estimate(batch_of(state, middle, clusters, names))
    assert third.values[place] == pytest.approx((first.values[place] + second.values[place]) / 2, rel=1e-6, abs=1e-9)
    baseline = one[place] - first.values[place] / (second.values[place] - first.values[place]) * (other - one)[place]
    assert -1e-9 <= baseline <= 1.0 + 1e-9


@pytest.mark.parametrize(("scale", "offset"), [(100.0, 0.0), (2.0, -1.0), (1.0, 5.0), (1.0, 1e8), (1e-6, 0.0)])
def test_the_range_of_rewards_changes_nothing(scale: float, offset: float) -> None:
    random = np.random.default_rng(3)
    rewards, clusters = (random.random((6, 4)) < 0.4).astype(float), np.array([0, 1, 0, 2, 1, 0])
    names = tuple("abcdef")
    plain, moved = experienced(), experienced(scale=scale, offset=offset)
    one = plain.estimate(batch_of(plain, rewards, clusters, names))
    other = moved.estimate(batch_of(moved, scale * rewards + offset, clusters, names))
    np.testing.assert_allclose(other.values, one.values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other.weight, one.weight, rtol=1e-5, atol=1e-6)


def test_a_group_of_one_has_its_history_as_baseline() -> None:
    state = experienced()
    clusters = np.array([0, 2])
    found = state.estimate(batch_of(state, np.array([[1.0], [1.0]]), clusters, ("a", "b")))
    assert found.weight.tolist() == [1.0, 1.0]
    history = state.history(clusters)
    np.testing.assert_allclose(found.baseline, history.mean, atol=0.05)
    assert found.values[0, 0] > found.values[1, 0] > 0


def test_history_moves_a_uniform_group_no_further_than_it_is_trusted() -> None:
    """|A| is of order w, not of its root: what history adds is least where it is trusted least."""
    state = experienced()
    for size in (2, 8, 64):
        found = state.estimate(batch_of(state, np.ones((1, size)), np.array([0]), ("a",)))
        deviation = found.scale * (1 + (1 - found.weight) / (size - 1))
        assert np.abs(found.values * deviation[:, None]).max() <= found.weight[0] + 1e-12


def efficiencies(spec: str, repeat: bool, size: int = 2, seed: int = 1) -> float:
    """Of an estimator on six clusters whose prompts differ, relative to RLOO; `repeat`: 120 prompts that come again and again."""
    random = np.random.default_rng(seed)
    clusters_of = random.integers(0, 6, 120)
    chance = random.beta(0.4 * (1 + clusters_of), 2.0)
    state, own, rloo = MomentsState(configured(MomentsConfig(), spec), 6), Alignment(), Alignment()
    for step in range(100):
        rows = (np.arange(24) + 24 * step) % 120
        names = tuple(f"{row}" if repeat else f"{step}:{row}" for row in rows)
        if not repeat:
            chance[rows] = random.beta(0.4 * (1 + clusters_of[rows]), 2.0)
        rewards = (random.random((24, size)) < chance[rows, None]).astype(float)
        batch = batch_of(state, rewards, clusters_of[rows], names)
        if step >= 20:
            luck = rewards - chance[rows, None]
            own.add(state.estimate(batch).values, luck)
            rloo.add((rewards - rewards.mean(axis=1, keepdims=True)) * size / (size - 1), luck)
        state.fold(step, CommittedRewards(clusters_of[rows], rewards, names, step + 1))
    return own.efficiency / rloo.efficiency


def test_a_prompt_that_comes_again_is_known_by_its_own_past() -> None:
    plain, with_past = (
        efficiencies(f"hierarchical:scale=none:own_past={own}", repeat=True) for own in ("false", "true")
    )
    assert 1.2 < plain < with_past - 0.1
    assert with_past < 2.0


def test_its_own_past_costs_nothing_where_prompts_never_come_again() -> None:
    plain, with_past = (
        efficiencies(f"hierarchical:scale=none:own_past={own}", repeat=False) for own in ("false", "true")
    )
    assert with_past == plain


def lag(moments: TrackedMeans | DecayedCounts, rise: bool) -> float:
    """Root mean square error of the clusters' means while pass@1 rises from .05 to .9 in 120 steps, or while it stays."""
    random = np.random.default_rng(0)
    offset, errors = np.linspace(-0.8, 0.8, 16), []
    for step in range(120):
        clusters = random.integers(0, 16, 32)
        level = math.log(0.05 / 0.95) + (math.log(9.0) - math.log(0.05 / 0.95)) * (step / 120 if rise else 0.5)
        mean = 1 / (1 + np.exp(-level - offset))[clusters]
        chance = random.beta(4 * mean, 4 * (1 - mean))
        if step > 5:
            errors.append(np.mean((moments.history(clusters).mean - mean) ** 2))
        rewards = (random.random((32, 8)) < chance[:, None]).astype(float)
        moments.fold(CommittedRewards(clusters, rewards, ("p",) * 32, step + 1))
    return float(np.mean(errors) ** 0.5)


def test_history_is_forgotten_as_fast_as_the_policy_moves() -> None:
    """No fixed retention is near in both: .95 lags a learning policy by nearly twice as much, .8 wastes what a resting one says."""
    fixed = {keep: [lag(DecayedCounts(16, keep, (1.0, 1.0)), rise) for rise in (True, False)] for keep in (0.8, 0.95)}
    moving, resting = (lag(TrackedMeans(16), rise) for rise in (True, False))
    assert moving < min(1.15 * fixed[0.8][0], 0.65 * fixed[0.95][0])
    assert resting < 0.75 * fixed[0.8][1]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=4)), max_size=8)
)
def test_the_filter_is_the_one_of_the_textbook(rows: list) -> None:
    """One cluster after the other, precision form: information adds, and the level is the average by information."""
    moments = TrackedMeans(CLUSTERS)
    for step, (cluster, rewards) in enumerate(rows):
        index, now = np.array([cluster]), TrackedMeans(CLUSTERS)
        now.load_state(moments.state() | {"policy_version": np.array(step)})
        before = now.history(index)
        level, precision = before.level[0], before.precision[0]
        moments.fold(CommittedRewards(index, np.array([rewards]), ("p",), step))
        after = moments.state()
        assert after["precision"][cluster] > precision
        if precision > 0:
            share = 1.0 - precision / after["precision"][cluster]
            assert after["level"][cluster] == pytest.approx(level + share * (np.mean(rewards) - level), abs=1e-9)
        else:
            assert after["level"][cluster] == pytest.approx(np.mean(rewards))


def test_all_right_and_then_all_wrong_is_news() -> None:
    """Also where no two rewards had ever differed: what comes first is remembered, in whatever unit."""
    for right in (1.0, 100.0):
        state = MomentsState(MomentsConfig(), CLUSTERS)
        clusters = np.array([0, 1])
        for step in range(3):
            state.fold(step, CommittedRewards(clusters, np.full((2, 4), right), ("a", "b"), step + 1))
        found = state.estimate(batch_of(state, np.zeros((2, 4)), clusters, ("c", "d")))
        assert (found.values < -0.5).all() and (found.values > -5).all()
        state.fold(3, CommittedRewards(clusters, np.zeros((2, 4)), ("c", "d"), 4))
        history = state.history(clusters)
        assert ((history.mean > 0) & (history.mean < right)).all()


def test_shares_of_a_cluster_are_what_it_was() -> None:
    state = experienced()
    moments = state.moments
    before = moments.history(np.arange(CLUSTERS))
    assert isinstance(before, TrackedHistory) and isinstance(moments, TrackedMeans)
    moments.grow(CLUSTERS + 1)
    moments.transfer(1, CLUSTERS, 0.4)
    after = moments.history(np.arange(CLUSTERS + 1))
    assert isinstance(after, TrackedHistory)
    assert after.level[CLUSTERS] == pytest.approx(before.level[1])
    assert after.groups[1] + after.groups[CLUSTERS] == pytest.approx(before.groups[1])
    assert after.pooled == pytest.approx(before.pooled)


def test_without_its_moments_it_says_what_it_needs() -> None:
    moments = DecayedCounts(1, 0.9, (1.0, 1.0))
    one = np.ones((1, 2))
    batch = RewardBatch(one, one, ("a",), moments.history(np.zeros(1, dtype=np.int64)))
    with pytest.raises(ValueError, match="tracked moments"):
        Hierarchical(HierarchicalOptions())(batch)


def test_a_cluster_is_expected_to_be_like_those_that_its_prompts_are_like() -> None:
    """Two subjects of eight clusters each, one of them never met: what is expected of it is what its own subject does."""
    rng = np.random.default_rng(0)
    subject = np.repeat([0, 1], 8)
    truth = np.where(subject == 0, 0.2, 0.7) + rng.normal(0, 0.03, 16)
    kinship = np.where(subject[:, None] == subject, 0.6, 0.02) + np.diag(np.full(16, 0.4 - 0.0))
    np.fill_diagonal(kinship, 1.0)
    level, precision = truth + rng.normal(0, 0.02, 16), np.full(16, 1 / 0.02**2)
    precision[3] = 0.0
    mean, variance = expected_of_others(level, precision, 0.05, kinship)
    plain, wide = expected_of_others(level, precision, 0.05, None)
    assert abs(mean[3] - 0.2) < 0.1 < abs(plain[3] - 0.2) and variance[3] < 0.6 * wide[3]
    # Nothing of a cluster is in what the others say of it.
    moved = level.copy()
    moved[5] += 0.01
    again, _ = expected_of_others(moved, precision, 0.05, kinship)
    assert abs(again[5] - mean[5]) < 0.1 * abs(again[4] - mean[4]) + 2e-3
    # And where likeness says nothing, it is not listened to.
    shuffled = level[rng.permutation(16)]
    precision[3] = precision[4]
    mixed, _ = expected_of_others(shuffled, precision, 0.05, kinship)
    flat, _ = expected_of_others(shuffled, precision, 0.05, None)
    assert np.abs(mixed - flat).max() < np.abs(mean - plain).max()


def test_a_run_s_clusters_tell_who_is_like_whom() -> None:
    embeddings = np.array([[1, 0, 0], [0.95, 0.31, 0], [0, 0, 1]], dtype=np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    codebook = Codebook(embeddings)
    kinship = codebook.kinship()
    np.testing.assert_allclose(np.diag(kinship), 1.0)
    assert kinship[0, 1] > 0.7 and kinship[0, 2] < 0.05 and np.linalg.eigvalsh(kinship).min() > 0
    state = MomentsState(MomentsConfig(), 3)
    state.change_clusters(codebook, ())
    assert isinstance(state.moments, TrackedMeans) and state.moments.kinship is not None
    assert state.under(MomentsConfig()).moments.kinship is not None  # type: ignore[attr-defined]
    state.change_clusters(fit_labels(PromptSet(("a", "b", "c"), ("x", "y", "z"), ("",) * 3), "source"), ())
    assert state.moments.kinship is None

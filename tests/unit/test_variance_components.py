"""Variance components of a log: against the textbook, against the truth behind drawn logs, and what they must not depend on."""

import numpy as np
import pytest

from moments_service.offline.logged_rewards import LoggedRewards
from moments_service.offline.logs import LoggedGroup
from moments_service.offline.population import Population, PromptStream
from moments_service.offline.variance_components import VarianceComponents


def drawn(
    seed: int, groups: int, size: int, population: Population, ragged: bool = False, drift: float = 0.0
) -> LoggedRewards:
    """A log of a population, 16 groups a step; drift: what a step adds to every reward; ragged: groups lose up to half."""
    rng = np.random.default_rng(seed)
    stream = PromptStream(population, rng)
    batches = [stream.next(16) for _ in range(-(-groups // 16))]
    names = [name for batch in batches for name in batch[0]][:groups]
    clusters, means = (np.concatenate([batch[column] for batch in batches])[:groups] for column in (1, 2))
    steps = np.arange(groups) // 16
    rewards = population.rewards(rng, clusters, means, size) + drift * steps[:, None]
    if ragged:
        rewards[np.arange(size) >= rng.integers(size // 2, size + 1, groups)[:, None]] = np.nan
    numbers = np.array([int(name) for name in names])
    return LoggedRewards(rewards, steps, np.unique(numbers, return_inverse=True)[1], clusters, prompts_known=True)


def gaussian(clusters: int = 6, pool: int = 0, persistence: float = 1.0) -> Population:
    means = np.linspace(-1.0, 1.0, clusters)
    one = np.ones(clusters)
    return Population(one / clusters, means, 0.5 * one, 2.0 * one, None, pool, persistence)


def test_of_balanced_groups_they_are_the_textbooks() -> None:
    """Nested analysis of variance: mean squares within, between prompts, between clusters, in one window."""
    rng = np.random.default_rng(3)
    clusters, prompts, size = 4, 5, 3
    rewards = (
        rng.normal(size=(clusters, prompts, size))
        + rng.normal(size=(clusters, prompts, 1))
        + rng.normal(size=(clusters, 1, 1))
    )
    count = clusters * prompts
    log = LoggedRewards(
        rewards.reshape(count, size),
        np.zeros(count, dtype=int),
        np.arange(count),
        np.repeat(np.arange(clusters), prompts),
        True,
    )
    of_prompt, of_cluster = rewards.mean(axis=2), rewards.mean(axis=(1, 2))
    within = ((rewards - of_prompt[..., None]) ** 2).sum() / (count * (size - 1))
    of_prompts = size * ((of_prompt - of_cluster[:, None]) ** 2).sum() / (clusters * (prompts - 1))
    of_clusters = size * prompts * ((of_cluster - rewards.mean()) ** 2).sum() / (clusters - 1)
    found = VarianceComponents(log, seed=0).of_log
    assert float(found.within) == pytest.approx(within)
    assert float(found.between) == pytest.approx((of_prompts - within) / size)
    assert float(found.across) == pytest.approx((of_clusters - of_prompts) / (size * prompts))


def test_of_ragged_groups_that_drift_they_are_unbiased() -> None:
    """Means over many logs, to four standard errors of them; drift from window to window is no difference between prompts."""
    truth = {"within": 2.0, "between": 0.5}
    logs = [
        VarianceComponents(drawn(seed, 400, 6, gaussian(), ragged=True, drift=0.02), 0).of_log for seed in range(60)
    ]
    for name, expected in truth.items():
        found = np.array([float(getattr(one, name)) for one in logs])
        # Drift inside of a window, four steps, still adds (0.02)^2 * 15 / 12 to what differs between prompts.
        assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(len(found)) + 0.001
    across = np.array([float(one.across) for one in logs])
    means = np.linspace(-1.0, 1.0, 6)
    assert across.mean() == pytest.approx(means.var(ddof=1), rel=0.1)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    population = Population.beta(0.3, 0.4)
    covered = []
    for seed in range(120):
        estimate = VarianceComponents(drawn(seed, 300, 4, population), seed).estimate(lambda spread: spread.rho)
        covered.append(estimate.low <= 0.4 <= estimate.high)
    assert 0.88 <= np.mean(covered) <= 1.0


def test_what_clusters_explain_goes_when_they_are_shuffled() -> None:
    components = VarianceComponents(drawn(1, 2000, 4, gaussian()), 0)
    explained = components.estimate(lambda spread: spread.explained)
    variance = np.linspace(-1.0, 1.0, 6).var(ddof=1)
    assert explained.low <= variance / (variance + 0.5) <= explained.high
    assert components.shuffled_explained < 0.03


@pytest.mark.parametrize("persistence", [1.0, 0.5, 0.0])
def test_what_a_prompts_own_past_tells(persistence: float) -> None:
    components = VarianceComponents(drawn(2, 6000, 4, gaussian(pool=500, persistence=persistence)), 0)
    assert float(components.of_log.persistence) == pytest.approx(persistence, abs=0.12)


def test_single_completions_of_prompts_that_come_again_tell_the_variance_within() -> None:
    log = drawn(4, 6000, 1, gaussian(pool=60))
    found = VarianceComponents(log, 0).of_log
    assert float(found.within) == pytest.approx(2.0, rel=0.1)
    assert np.isnan(log.uniform_share())


def test_single_completions_of_prompts_that_come_once_tell_nothing_of_it() -> None:
    components = VarianceComponents(drawn(4, 600, 1, gaussian()), 0)
    estimate = components.estimate(lambda spread: spread.within)
    assert np.isnan(estimate.value) and np.isnan(estimate.margin)


def test_rewards_far_from_zero_lose_nothing() -> None:
    log = drawn(5, 800, 4, gaussian())
    far = LoggedRewards(log.rewards + 1e8, log.steps, log.prompts, log.clusters, True)
    near, distant = VarianceComponents(log, 0), VarianceComponents(far, 0)
    for name in ("within", "between", "across"):
        assert float(getattr(distant.of_log, name)) == pytest.approx(float(getattr(near.of_log, name)), rel=1e-4)
    assert distant.by_cluster().mean == pytest.approx(near.by_cluster().mean + 1e8)


def test_clusters_of_few_prompts_are_shrunk_to_all() -> None:
    """One cluster whose two prompts differ hugely, among many alike: most of what it is taken for is what all are."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(402, 4))
    rewards[400:] += np.array([[-3.0], [3.0]])
    clusters = np.repeat([0, 1], [400, 2])
    spread = VarianceComponents(
        LoggedRewards(rewards, np.zeros(402, dtype=int), np.arange(402), clusters, True), 0
    ).by_cluster()
    assert spread.groups.tolist() == [400, 2]
    assert 0.0 <= spread.between[0] < 0.2
    assert 1.0 < spread.between[1] < 18.0 / 4
    assert spread.rho == pytest.approx(spread.between / (spread.between + spread.within))


def test_a_log_as_columns() -> None:
    groups = [
        LoggedGroup(step=0, group="a", prompt="1 + 1", rewards=(1.0, None, 0.0)).model_copy(update={"cluster": 7}),
        LoggedGroup(step=0, group="b", prompt="2 + 2", rewards=(None,)).model_copy(update={"cluster": 9}),
        LoggedGroup(step=1, group="c", prompt="1 + 1", rewards=(1.0, True)).model_copy(update={"cluster": 7}),
    ]
    log = LoggedRewards.of(groups)
    assert log.sizes.tolist() == [2, 2] and log.prompts.tolist() == [0, 0] and log.clusters.tolist() == [0, 0]
    assert log.prompts_known and log.uniform_share() == 0.5
    unknown = LoggedRewards.of([LoggedGroup(step=0, group=name, cluster=3, rewards=(0.0, 1.0)) for name in "ab"])
    assert unknown.prompts.tolist() == [0, 1] and not unknown.prompts_known


def test_a_step_lies_in_one_window() -> None:
    log = drawn(6, 1003, 2, gaussian())
    windows = log.windows()
    assert 1 < windows.max() < 8 and (np.diff(windows) >= 0).all()
    assert all(len(np.unique(windows[log.steps == step])) == 1 for step in np.unique(log.steps))

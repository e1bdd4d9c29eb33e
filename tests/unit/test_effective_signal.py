"""The effective signal of a batch, from what a run knows, against the truth that only a simulation knows."""

from dataclasses import replace

import numpy as np
import pytest

from moments_service.blend import Array
from moments_service.config import MomentsConfig
from moments_service.effective_signal import effective_signal
from moments_service.estimators import RewardBatch
from moments_service.estimators.grpo import grpo
from moments_service.estimators.naming import configured
from moments_service.estimators.rloo import rloo
from moments_service.moments import CommittedRewards, History
from moments_service.offline.efficiency import Alignment
from moments_service.offline.population import Population, PromptStream
from moments_service.signal import signal_metrics
from moments_service.state import MomentsState

pytestmark = pytest.mark.unit

SPECS = ("grpo", "rloo", "reinforce_pp", "bv_blend:safe", "bv_blend:eb", "hierarchical")
STEPS, BEFORE = 250, 30


def simulated(population: Population, size: int, groups: int) -> dict[str, tuple[float, float]]:
    """By estimator: the true effective signal, and the mean of what every batch says of it."""
    rng = np.random.default_rng(1)
    stream = PromptStream(population, rng)
    states = {spec: MomentsState(configured(MomentsConfig(), spec), len(population.share)) for spec in SPECS}
    truth = {spec: Alignment(len(population.share)) for spec in SPECS}
    told: dict[str, list[float]] = {spec: [] for spec in SPECS}
    for step in range(BEFORE + STEPS):
        prompts, clusters, means = stream.next(groups)
        rewards = population.rewards(rng, clusters, means, size)
        committed = CommittedRewards(clusters, rewards, prompts, policy_version=step + 1)
        for spec, state in states.items():
            if step >= BEFORE:
                history = state.history(clusters)
                batch = RewardBatch(rewards, np.ones_like(rewards), prompts, history, clusters=clusters)
                own = state.estimate(batch)
                truth[spec].add(own.values, rewards - means[:, None], clusters)
                told[spec].append(effective_signal(own.without_cluster_scale(), rewards, history, own.prior))
            state.fold(step, committed)
    return {spec: (truth[spec].effective_signal, float(np.mean(told[spec]))) for spec in SPECS}


@pytest.mark.parametrize(("rho", "size"), [(0.05, 2), (0.4, 2), (0.4, 8), (0.8, 8)])
def test_on_average_over_steps_it_is_right(rho: float, size: int) -> None:
    """For estimators of every kind, in two clusters of Beta distributed chances with about the same variance."""
    means = np.array([0.3, 0.6])
    variance = means * (1 - means)
    population = Population(np.array([0.6, 0.4]), means, rho * variance, (1 - rho) * variance, (0.0, 1.0))
    for spec, (truth, told) in simulated(population, size, groups=64 // size).items():
        assert told == pytest.approx(truth, abs=0.05), spec


def test_with_groups_of_one_it_takes_prompts_for_alike() -> None:
    """Right where they are. A baseline that is made of the batch looks better by twice its share in it."""
    for spec, (truth, told) in simulated(Population.beta(0.3, 0.02), 1, groups=64).items():
        assert told == pytest.approx(truth, abs=0.03 + 2 / 64), spec
    unlike = simulated(Population.beta(0.3, 0.6), 1, groups=64)
    assert unlike["bv_blend:safe"][1] > 1.5 * unlike["bv_blend:safe"][0]


def test_what_an_estimator_expects_of_a_prompt_that_comes_again_counts() -> None:
    """Without it the default's advantages would seem to have about half of what they have."""
    population = Population(np.ones(1), np.full(1, 0.3), np.full(1, 0.1), np.full(1, 0.11), (0.0, 1.0), pool=128)
    truth, told = simulated(population, 2, groups=32)["hierarchical"]
    assert truth > 0.8 and told == pytest.approx(truth, abs=0.08)


def known_history(groups: int, mean: float = 0.3, within: float = 0.15, between: float = 0.06) -> History:
    one = np.ones(groups)
    return History(mean * one, (within + between) * one, 50 * one, one > 0, within * one, between * one)


def some_rewards(seed: int = 0, groups: int = 40, size: int = 4) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.random((groups, size)) < rng.beta(0.6, 1.4, groups)[:, None]).astype(float)


def batch_of(rewards: Array, history: History) -> RewardBatch:
    return RewardBatch(rewards, np.ones_like(rewards), tuple(map(str, range(len(rewards)))), history)


def test_of_advantages_that_sum_to_0_in_every_group_the_mean_of_history_does_not_matter() -> None:
    rewards = some_rewards()
    history = known_history(len(rewards))
    values = rloo(batch_of(rewards, history)).values
    elsewhere = replace(history, mean=history.mean + 0.4, between=history.between * 3)
    assert effective_signal(values, rewards, history) == pytest.approx(effective_signal(values, rewards, elsewhere))


def test_units_of_rewards_and_advantages_do_not_matter() -> None:
    rewards = some_rewards()
    history = known_history(len(rewards))
    values = rewards - 0.3
    other = replace(history, mean=1e3 + 50 * history.mean, within=2500 * history.within, between=2500 * history.between)
    found = effective_signal(values, rewards, history)
    assert 0.2 < found < 1.2
    assert effective_signal(-7.0 * values, 1e3 + 50 * rewards, other) == pytest.approx(found)


def test_the_same_by_a_second_way_of_writing_it() -> None:
    """Group by group in plain numbers, with ragged groups and a cluster that nobody has seen."""
    rewards = some_rewards(3, groups=12)
    rewards[2, 1:] = np.nan
    rewards[5, 3] = np.nan
    history = known_history(12)
    history.seen[7] = False
    values = np.random.default_rng(1).normal(size=rewards.shape) + rewards
    known = [row[~np.isnan(row)] for row in rewards]
    counts = [len(row) for row in known]
    missed = [(row.mean() - 0.3) ** 2 - 0.15 / len(row) for row in known]
    luck = []
    for place, row in enumerate(rewards):
        others = [miss for other, miss in enumerate(missed) if other not in (place, 7)]
        error = max(float(np.mean(others)), 0.0)
        shrinkage = error / (error + 0.15 / counts[place]) if history.seen[place] else 1.0
        luck.append(row - (0.3 + shrinkage * (known[place].mean() - 0.3)))
    pooled = sum(np.nanvar(row) * n for row, n in zip(rewards, counts, strict=True)) / sum(n - 1 for n in counts)
    variance = sum(n * (0.15 if seen else pooled) for n, seen in zip(counts, history.seen, strict=True)) / sum(counts)

    def ratio(rows: list[int]) -> float:
        aligned = sum(np.nansum(values[row] * luck[row]) for row in rows)
        squares = sum(np.nansum(np.where(np.isnan(rewards[row]), 0.0, values[row] ** 2)) for row in rows)
        return float(aligned**2 / (squares * variance * sum(counts[row] for row in rows)))

    everyone = list(range(12))
    left_out = [ratio([row for row in everyone if row != gone]) for gone in everyone]
    expected = 12 * ratio(everyone) - 11 * np.mean(left_out)
    assert effective_signal(values, rewards, history) == pytest.approx(expected)


def test_advantages_that_are_all_0_have_none() -> None:
    rewards = np.ones((5, 4))
    assert effective_signal(np.zeros_like(rewards), rewards, known_history(5)) == 0.0


def test_a_batch_of_one_group_has_one() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 1.0]])
    assert effective_signal(rewards - 0.5, rewards, known_history(1)) > 0.0


def test_a_step_logs_it_beside_the_share_of_groups_whose_rewards_differ() -> None:
    rewards = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, np.nan], [1.0, 1.0]])
    batch = batch_of(rewards, known_history(4))
    own = configured(MomentsConfig(), "bv_blend:safe").estimator.create()(batch)
    metrics = signal_metrics(batch, own, grpo(batch), 5.0)
    assert metrics["effective_signal/own"] == effective_signal(own.values, rewards, batch.history)
    assert metrics["effective_signal/grpo"] == effective_signal(grpo(batch).values, rewards, batch.history)

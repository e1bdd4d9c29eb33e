"""Alarms: quiet while a policy learns, quick when a grader breaks."""

from collections.abc import Callable

import numpy as np
import pytest

from moments_service.config import MomentsConfig
from moments_service.estimators import RewardBatch
from moments_service.health import Alarm, HealthMonitor, exploded
from moments_service.moments import CommittedRewards
from moments_service.state import MomentsState

pytestmark = pytest.mark.unit

CLUSTERS, PROMPTS, GROUPS, SIZE = 8, 400, 64, 4
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
Break = Callable[[Batch, np.random.Generator], None]


def stream(
    seed: int, steps: int, breaks_at: int, broken: Break | None, learning: float = 0.004
) -> list[tuple[int, Alarm]]:
    """Alarms of a run whose prompts become easier by `learning` a step, and whose batches `broken` spoils."""
    generator = np.random.default_rng(seed)
    difficulty = generator.beta(1, 3, size=PROMPTS)
    cluster_of = generator.integers(0, CLUSTERS, PROMPTS)
    monitor = HealthMonitor(CLUSTERS, MomentsConfig().health.threshold)
    alarms = []
    for step in range(steps):
        prompts = generator.integers(0, PROMPTS, GROUPS)
        solved = np.clip(difficulty[prompts] + learning * step * (1 - difficulty[prompts]), 0, 1)
        rewards = (generator.random((GROUPS, SIZE)) < solved[:, None]).astype(float)
        lengths = generator.poisson(10, (GROUPS, SIZE)).astype(float)
        if broken is not None and step >= breaks_at:
            broken((cluster_of[prompts], rewards, lengths), generator)
        committed = CommittedRewards(cluster_of[prompts], rewards, ("",) * GROUPS, step + 1, None, lengths)
        seen = monitor.observe(committed.clusters, rewards, lengths)
        alarms += [(step, alarm) for alarm in monitor.alarms(seen)]
        monitor.fold(committed)
    return alarms


def always_wrong(batch: Batch, _: np.random.Generator) -> None:
    batch[1][:] = 0.0


def always_right(batch: Batch, _: np.random.Generator) -> None:
    batch[1][:] = 1.0


def right_in_one_cluster(batch: Batch, _: np.random.Generator) -> None:
    batch[1][batch[0] == 3] = 1.0


def failing(batch: Batch, generator: np.random.Generator) -> None:
    batch[1][generator.random(batch[1].shape) < 0.4] = np.nan


def loophole(batch: Batch, generator: np.random.Generator) -> None:
    batch[1][:] = np.maximum(batch[1], generator.random(batch[1].shape) < 0.7)
    batch[2][:] = generator.poisson(4, batch[2].shape)


@pytest.mark.parametrize("learning", [0.0, 0.002, 0.006])
def test_learning_raises_no_alarm(learning: float) -> None:
    # A policy at .006 a step has solved everything after 150 steps.
    assert [stream(seed, 150, 0, None, learning) for seed in range(6)] == [[]] * 6


@pytest.mark.parametrize(
    ("broken", "kind", "within"),
    [
        (always_wrong, "reward fell", 5),
        (always_right, "reward jumped", 5),
        (failing, "errors rose", 5),
        (loophole, "reward jumped with length", 6),
    ],
)
def test_a_break_is_noticed_within_a_few_batches_and_not_before(broken: Break, kind: str, within: int) -> None:
    for seed in range(6):
        alarms = stream(seed, 60, 40, broken)
        step = alarms[0][0]
        assert 40 <= step < 40 + within
        assert kind in {alarm.kind for at, alarm in alarms if at == step}


def test_a_break_in_one_cluster_names_it() -> None:
    for seed in range(6):
        alarms = stream(seed, 70, 40, right_in_one_cluster)
        assert any(alarm.cluster == 3 and alarm.kind == "reward jumped" for _, alarm in alarms)
        assert all(step >= 40 for step, _ in alarms)


def test_nothing_is_said_of_a_cluster_that_was_hardly_seen() -> None:
    assert stream(0, 5, 2, always_right) == []


def test_observing_changes_nothing_and_a_saved_monitor_goes_on_alike() -> None:
    monitor, other = HealthMonitor(2, 10.0), HealthMonitor(2, 10.0)
    rewards, lengths = np.array([[1.0, 0.0], [0.0, np.nan]]), np.full((2, 2), 5.0)
    before = monitor.state()
    seen = monitor.observe(np.array([0, 1]), rewards, lengths)
    monitor.alarms(seen)
    for name, array in monitor.state().items():
        np.testing.assert_array_equal(array, before[name])
    monitor.fold(CommittedRewards(np.array([0, 1]), rewards, ("a", "b"), 1, None, lengths))
    other.load_state(monitor.state())
    for name, array in other.state().items():
        np.testing.assert_array_equal(array, monitor.state()[name])
    other.grow(5)
    assert {len(array) for name, array in other.state().items() if not name.startswith("expected_")} == {6}
    assert other.state()["length"][-1] == monitor.state()["length"][-1] > 0


def after_nothing_but(reward: float, **estimator: str) -> tuple[float, tuple[Alarm, ...]]:
    """The largest advantage, and the alarms, of a group of the opposite reward in a cluster that only ever saw this one."""
    config = MomentsConfig.model_validate({"estimator": {"kind": "bv_blend", **estimator}})
    state = MomentsState(config, 2)
    clusters, rewards = np.array([1]), np.full((1, 4), reward)
    for step in range(20):
        state.fold(step, CommittedRewards(clusters, rewards, ("a",), step + 1))
    values = state.estimate(RewardBatch(-rewards, np.ones((1, 4)), ("a",), state.history(clusters))).values
    return float(np.abs(values).max()), exploded(clusters, -rewards, values)


def test_an_advantage_out_of_all_proportion_raises_an_alarm_that_names_its_cluster() -> None:
    largest, (alarm,) = after_nothing_but(-1.0, variant="paper")
    assert largest > 1e8
    assert str(alarm) == f"advantages exploded in cluster 1: {largest:.3g}, expected 1e+03"
    largest, alarms = after_nothing_but(-1.0, variant="safe")
    assert largest <= 5 and not alarms


def test_large_rewards_may_have_large_advantages() -> None:
    rewards = np.array([[1e6, 0.0, np.nan]])
    assert not exploded(np.zeros(1, dtype=np.int64), rewards, rewards - 5e5)
    (alarm,) = exploded(np.zeros(1, dtype=np.int64), rewards, 1e4 * rewards)
    assert (alarm.expected, alarm.found) == (1e9, 1e10)

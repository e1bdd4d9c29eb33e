"""No estimator pushes down what nothing could be better than, or up what nothing could be worse than, whatever a prompt did before."""

import numpy as np
import pytest

from moments_service.config import MomentsConfig
from moments_service.estimators import ESTIMATORS, RewardBatch
from moments_service.estimators.base import Advantages
from moments_service.moments import CommittedRewards
from moments_service.state import MomentsState
from tests.unit.estimator_oracles import configuration

pytestmark = pytest.mark.unit

CLUSTERS, PROMPTS, GROUPS, SIZE, STEPS = 3, 24, 8, 4, 40
WHITENED = {"spo", "spo_pp"}
"""By definition less the mean advantage of the batch, whatever that is: what is above its prompt's value may be below the batch's mean."""


def on_a_rising_policy(name: str, seed: int) -> list[tuple[np.ndarray, Advantages]]:
    """The rewards and advantages of each step while pass@1 rises from .05 to .95 and prompts come again and again."""
    state, random = (
        MomentsState(MomentsConfig(estimator=configuration(name).estimator), CLUSTERS),
        np.random.default_rng(seed),
    )
    found = []
    for step, level in enumerate(np.linspace(0.05, 0.95, STEPS)):
        rows = random.integers(0, PROMPTS, GROUPS)
        clusters, names = rows % CLUSTERS, tuple(map(str, rows))
        chance = np.clip(level + 0.8 * (rows / PROMPTS - 0.5), 0, 1)
        rewards = (random.random((GROUPS, SIZE)) < chance[:, None]).astype(float)
        history, ones = state.history(clusters), np.ones_like(rewards)
        batch = RewardBatch(rewards, ones, names, history, clusters, np.full(GROUPS, step), surprisals=ones)
        found.append((rewards, state.estimate(batch)))
        state.fold(step, CommittedRewards(clusters, rewards, names, step + 1))
    return found


@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - WHITENED))
def test_all_right_is_never_pushed_down_and_all_wrong_never_up(name: str) -> None:
    for seed in range(4):
        for rewards, advantages in on_a_rising_policy(name, seed):
            right, wrong = (rewards == 1).all(axis=1), (rewards == 0).all(axis=1)
            assert (advantages.values[right] > -1e-9).all() and (advantages.values[wrong] < 1e-9).all()


def test_the_default_expects_nothing_beyond_the_rewards_that_there_are() -> None:
    for seed in range(4):
        for _, advantages in on_a_rising_policy("hierarchical", seed)[1:]:
            assert advantages.prior is not None
            assert 0 <= advantages.prior.mean.min() <= advantages.prior.mean.max() <= 1

"""Whether an estimator can teach anything at all from groups of one size: found out before a run starts."""

import numpy as np

from moments_service.config import MomentsConfig
from moments_service.estimators import RewardBatch
from moments_service.moments import CommittedRewards
from moments_service.state import MomentsState


def can_teach(config: MomentsConfig, group_size: int) -> bool:
    """Whether any group of `group_size` rewards of 0 and 1 gets an advantage, in a prompt that came out the other way before.

    `rloo` has nothing to compare a single completion with, and pass@8 of eight completions is certain.
    """
    solved = np.arange(group_size + 1)
    rewards = (np.arange(group_size) < solved[:, None]).astype(np.float64)
    clusters = np.zeros(len(solved), dtype=np.int64)
    prompts = tuple(f"prompt{number}" for number in solved)
    state = MomentsState(config, clusters=1)
    state.fold(0, CommittedRewards(clusters, 1.0 - rewards, prompts, policy_version=1))
    one = np.ones_like(rewards)
    batch = RewardBatch(rewards, one, prompts, state.history(clusters), clusters, surprisals=one)
    return bool(state.estimate(batch).carries_signal().any())

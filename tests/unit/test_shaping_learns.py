"""Each rule does to a policy what it is for: a table of lengths learns by REINFORCE from shaped advantages, and from raw ones."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from actors.shaping.alp import Alp
from actors.shaping.arlcp import Arlcp
from actors.shaping.budget_curriculum import BudgetCurriculum
from actors.shaping.drpo import Drpo
from actors.shaping.format_length import FormatLength
from actors.shaping.grpo_lambda import GrpoLambda
from actors.shaping.hapo import HapoOptions
from actors.shaping.hard_truncation import HardTruncation
from actors.shaping.kimi import Kimi
from actors.shaping.l1 import L1
from actors.shaping.laser_d import LaserDOptions
from actors.shaping.protocol import ShapingOptions
from actors.shaping.shaper import Shaper, against_the_others
from actors.shaping.soft_overlong import SoftOverlong
from actors.shaping.unlikeliness import Unlikeliness
from tests.unit.made_batches import made_batch

pytestmark = pytest.mark.unit

LENGTHS = np.arange(10, 90, 10)
"""What the policy chooses among, in tokens; the last is the most that it may say."""
ENOUGH = 30
"""An answer that is shorter is wrong."""
GROUPS, SIZE, STEPS, RATE = 6, 8, 250, 0.5


def trained(
    *rules: ShapingOptions, observe: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    """[8] the policy in the end. observe: lengths and log-probs to what rules saw of the completions."""
    random, logits, shaper = np.random.default_rng(0), np.zeros(len(LENGTHS)), Shaper(rules, int(LENGTHS[-1]))
    for step in range(STEPS):
        policy = np.exp(logits) / np.exp(logits).sum()
        chosen = random.choice(len(LENGTHS), (GROUPS, SIZE), p=policy)
        lengths = LENGTHS[chosen]
        rewards = (lengths >= ENOUGH) & (random.random(chosen.shape) < 0.9)
        batch = made_batch(rewards.astype(float).tolist(), lengths.tolist(), step=step)
        batch.advantages[:] = against_the_others(batch.table.rewards)
        seen = {}
        if observe is not None:
            values = observe(lengths, np.log(policy)[chosen])
            seen = {
                group: {rule.kind: tuple(row) for rule in rules}
                for group, row in zip(batch.group_ids, values.tolist(), strict=True)
            }
        advantages = shaper(batch, seen).advantages
        shaper.learn(batch)
        pushed = np.bincount(chosen.ravel(), advantages.ravel(), len(LENGTHS)) - policy * advantages.sum()
        logits = logits + RATE * pushed / advantages.size
    return np.exp(logits) / np.exp(logits).sum()


@cache
def plain() -> np.ndarray:
    """The policy that raw rewards teach."""
    return trained()


def mean(policy: np.ndarray) -> float:
    return float(policy @ LENGTHS)


def enough(policy: np.ndarray) -> float:
    return float(policy[LENGTHS >= ENOUGH].sum())


def test_raw_rewards_teach_what_is_right_and_no_length() -> None:
    assert enough(plain()) > 0.95 and 50 < mean(plain()) < 60


@pytest.mark.parametrize(
    "rule",
    [Kimi(), Alp(beta=0.01), GrpoLambda(top=0.5, alpha=0.6), HapoOptions(), LaserDOptions(every=10), Drpo(temperature=0.3),
     BudgetCurriculum(start=60, decay=0.8, every=50), Arlcp(penalty=0.6)],
    ids=lambda rule: rule.kind,
)  # fmt: skip
def test_right_answers_become_shorter_and_stay_right(rule: ShapingOptions) -> None:
    def observe(lengths: np.ndarray, logprobs: np.ndarray) -> np.ndarray:
        # A reflection for every token; a budget of 40.
        return lengths.astype(float) if isinstance(rule, Arlcp) else np.full(lengths.shape, 40.0)

    policy = trained(rule, observe=observe)
    assert mean(policy) < mean(plain()) - 5 and enough(policy) > 0.9


def test_soft_overlong_keeps_away_from_the_limit_alone() -> None:
    policy = trained(SoftOverlong(window=0.25))
    near = LENGTHS > 60
    assert policy[near].sum() < 0.05 < 0.2 < plain()[near].sum() and enough(policy) > 0.95


def test_hard_truncation_leaves_nothing_above_its_limit() -> None:
    policy = trained(HardTruncation(max_tokens=50))
    assert policy[LENGTHS > 50].sum() < 0.05 and enough(policy) > 0.9


def test_l1_goes_where_it_is_told_to() -> None:
    policy = trained(L1(tokens=(70, 70), alpha=0.02), observe=lambda lengths, _: np.full(lengths.shape, 70.0))
    assert LENGTHS[policy.argmax()] == 70 and mean(policy) > mean(plain()) + 5


def test_format_and_length_go_to_half_the_limit_whatever_is_right() -> None:
    policy = trained(FormatLength(), observe=lambda lengths, _: np.ones(lengths.shape))
    assert LENGTHS[policy.argmax()] == 40 and mean(policy) < 45


def test_unlikeliness_keeps_right_answers_apart() -> None:
    def entropy(policy: np.ndarray) -> float:
        return float(-(policy * np.log(policy)).sum())

    policy = trained(Unlikeliness(beta=0.5), observe=lambda _, logprobs: logprobs)
    assert entropy(policy) > entropy(plain()) and enough(policy) > 0.9

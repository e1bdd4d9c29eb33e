"""Where a rank's ratios start: passes that are made and those that are not, and the moving average of the policy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.batching.packed import PackedBatch
from learner.config import LearnerConfig
from learner.rank import AVERAGE, LearnerRank
from tests.unit.test_learner_checkpoints import contents
from tests.unit.test_learner_rank import config_with, draw_groups, make_policy, running_rank, untimed

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_policy(tmp_path_factory.mktemp("old") / "policy")


def averaging(decay: float = 0.75) -> LearnerConfig:
    return config_with(lr=1e-2, old_logprobs={"kind": "average", "decay": decay})


def trained(rank: LearnerRank) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in rank.policy.model.named_parameters()}


@pytest.mark.parametrize(
    ("old", "updates", "passes"),
    [
        ("recompute", 1, 0),
        ("recompute", 2, 2),
        ("rollout", 2, 0),
        ("interpolate", 2, 0),
        ("average", 1, 1),
        ("average", 2, 2),
    ],
)
def test_a_pass_is_made_where_it_is_needed(
    policy_path: str, monkeypatch: pytest.MonkeyPatch, old: Any, updates: int, passes: int
) -> None:
    with running_rank(policy_path, config_with(old_logprobs=old, updates_per_batch=updates)) as rank:
        made: list[PackedBatch] = []
        asked = rank.policy_step._logprobs
        monkeypatch.setattr(
            rank.policy_step, "_logprobs", lambda policy, plan: made.extend(plan) or asked(policy, plan)
        )
        rank.step([draw_groups(0)] * updates, 0)
    assert len(made) == passes


def test_ratios_start_at_the_moving_average(policy_path: str) -> None:
    with running_rank(policy_path, averaging()) as rank:
        expected = trained(rank)
        for step in range(3):
            metrics = rank.step([draw_groups(step)], step)
            assert (metrics["ratio_max"] > 1.001) == (step > 0), "the average begins as the policy"
            for name, tensor in trained(rank).items():
                expected[name] = 0.75 * expected[name] + 0.25 * tensor
        held = rank.second[AVERAGE].tensors
    assert held.keys() == expected.keys()
    for name, tensor in held.items():
        torch.testing.assert_close(torch.as_tensor(tensor.full_tensor()), torch.as_tensor(expected[name].full_tensor()))


def test_an_update_that_is_skipped_does_not_move_the_average(policy_path: str) -> None:
    groups = draw_groups(0)
    broken = [(samples, np.full(len(samples), 1e38)) for samples, _ in groups]
    with running_rank(policy_path, averaging()) as rank:
        rank.step([groups], 0)
        before = {name: tensor.clone() for name, tensor in rank.second[AVERAGE].tensors.items()}
        assert rank.step([broken], 1)["skipped"] == 1.0
        assert all(
            torch.equal(before[name].full_tensor(), held.full_tensor())
            for name, held in rank.second[AVERAGE].tensors.items()
        )


def test_a_resumed_run_has_the_unbroken_one_s_average_bit_for_bit(policy_path: str, tmp_path: Path) -> None:
    with running_rank(policy_path, averaging()) as rank:
        rank.step([draw_groups(0)], 0)
        rank.save(tmp_path / "half")
        unbroken = rank.step([draw_groups(1)], 1)
        rank.save(tmp_path / "unbroken")
    with running_rank(policy_path, averaging()) as rank:
        rank.load(tmp_path / "half")
        resumed = rank.step([draw_groups(1)], 1)
        rank.save(tmp_path / "resumed")
    assert untimed(unbroken) == untimed(resumed)
    one, other = contents(tmp_path / "unbroken"), contents(tmp_path / "resumed")
    assert any(name.startswith("average.") for name in one)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

"""Where a rank's ratios start: passes that are made and those that are not, and the moving average of the policy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from actors.rollout.sample import Sample
from learner.batching.packed import PackedBatch
from learner.config import LearnerConfig
from learner.rank import AVERAGE, LearnerRank
from tests.gloo_ranks import OnTwoRanks, on_one_rank
from tests.made_samples import ScoredSamples
from tests.unit.test_learner_checkpoints import Plan, contents
from tests.unit.test_learner_rank import config_with, draw_groups, make_policy, running_rank
from tests.unit.test_learner_reference import ADAPTERS, by_plan

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_policy(tmp_path_factory.mktemp("old") / "policy")


def averaging(**changes: Any) -> LearnerConfig:
    return config_with(lr=1e-2, old_logprobs={"kind": "average", "decay": 0.75}, **changes)


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


@ADAPTERS
def test_two_ranks_that_resume_have_the_unbroken_ones_average(
    policy_path: str, adapter: dict[str, Any], tmp_path: Path, on_two_ranks: OnTwoRanks
) -> None:
    """Bit for bit; and one rank reads what two wrote."""
    config = averaging(**adapter).model_dump()
    half, unbroken, resumed, alone = (tmp_path / name for name in ("half", "unbroken", "resumed", "alone"))
    first: Plan = [("step", 0), ("save", half), ("step", 1), ("save", unbroken)]
    on_two_ranks(by_plan, policy_path, config, first)
    on_two_ranks(by_plan, policy_path, config, [("load", half), ("step", 1), ("save", resumed)])
    on_one_rank(by_plan, policy_path, config, [("load", half), ("save", alone)])
    held = {path: contents(path) for path in (half, unbroken, resumed, alone)}
    averages = [name for name in held[half] if name.startswith("average.")]
    assert averages and any(not torch.equal(held[half][name], held[unbroken][name]) for name in averages)
    for one, other in ((unbroken, resumed), (half, alone)):
        assert held[one].keys() == held[other].keys()
        assert {name for name in held[one] if not torch.equal(held[one][name], held[other][name])} <= {"files"}


# --- tokens of several ages, from samples to metrics ----------------------------------------------------------------------

STEP = 3
AGE = {"0": 0, "1": 1, "2-3": 3}


def exact_logprobs(policy_path: str, sample: Sample) -> np.ndarray:
    """[tokens] float64 log-probs of a sample's tokens by transformers' own model; 0 for the first."""
    model = transformers.AutoModelForCausalLM.from_pretrained(policy_path, dtype=torch.float64)
    ids = torch.from_numpy(sample.token_ids.astype(np.int64))[None]
    with torch.no_grad():
        logs = model(ids).logits[0, :-1].log_softmax(-1)
    return np.concatenate([[0.0], logs.gather(1, ids[0, 1:, None])[:, 0].numpy()])


def of_every_age(policy_path: str) -> tuple[list[ScoredSamples], list[list[tuple[np.ndarray, ...]]]]:
    """Groups whose tokens are 0, 1 and 3 versions old, and of each sample's trained tokens: now, sampler, age."""
    rng = np.random.default_rng(0)
    groups, known = [], []
    for samples, advantages in draw_groups(STEP, count=2):
        drawn, tokens = [], []
        for sample in samples:
            now = exact_logprobs(policy_path, sample)
            age = rng.choice(list(AGE.values()), len(now))
            rollout = (now + 0.3 * rng.normal(size=len(now))).astype(np.float32)
            at = sample.loss_mask
            versions = np.where(at, STEP - age, -1).astype(np.int32)
            drawn.append(replace(sample, logprobs=np.where(at, rollout, 0.0).astype(np.float32), versions=versions))
            tokens.append((now[at], rollout[at].astype(np.float64), age[at]))
        groups.append((tuple(drawn), advantages))
        known.append(tokens)
    return groups, known


@pytest.mark.parametrize("old", ["recompute", "rollout", "interpolate"])
def test_a_step_s_ratios_are_right_for_tokens_of_every_age(policy_path: str, old: str) -> None:
    groups, known = of_every_age(policy_path)
    correction = "none" if old == "rollout" else "decoupled_ppo"
    with running_rank(policy_path, config_with(old_logprobs=old, correction={"kind": correction})) as rank:
        found = rank.step([groups], STEP)
    loss, ratios, weights, ages = 0.0, [], [], []
    for (_, advantages), tokens in zip(groups, known, strict=True):
        for advantage, (now, rollout, age) in zip(advantages, tokens, strict=True):
            between = np.where(age == 0, now, rollout / np.maximum(age, 1) + now * (age - 1) / np.maximum(age, 1))
            start = {"recompute": now, "rollout": rollout, "interpolate": between}[old]
            ratio, weight = np.exp(now - start), np.exp(start - rollout) if correction != "none" else np.ones(len(now))
            surrogate = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
            loss -= (weight * surrogate).mean() / len(tokens) / len(groups)
            ratios.append(ratio)
            weights.append(weight)
            ages.append(age)
    ratio, weight, age = map(np.concatenate, (ratios, weights, ages))
    assert found["loss"] == pytest.approx(loss, rel=1e-4)
    for label, versions in AGE.items():
        chosen = age == versions
        assert found[f"tokens_by_age/{label}"] == chosen.sum() > 0
        assert found[f"ratio_max_by_age/{label}"] == pytest.approx(ratio[chosen].max(), rel=1e-4)
        if correction != "none":
            assert found[f"correction_weight_by_age/{label}"] == pytest.approx(weight[chosen].mean(), rel=1e-4)

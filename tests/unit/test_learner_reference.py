"""The reference policy of the KL: the start, a path, the base under an adapter, or the policy of some steps ago."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from learner.adapters import Lora
from learner.batching.pack import count, pack
from learner.config import KlConfig, LearnerConfig
from learner.errors import CheckpointError
from learner.footprint import PolicyShape, footprint
from learner.job import LearnerJob
from learner.model.second_weights import OtherWeights, SecondWeights, WithoutAdapter
from learner.rank import LearnerRank
from tests.gloo_ranks import OnTwoRanks, on_one_rank
from tests.made_policies import TINY
from tests.unit.test_learner_checkpoints import Plan, contents, follow
from tests.unit.test_learner_rank import TOTAL_STEPS, config_with, draw_groups, running_rank, weights_of

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A policy, and another of its architecture."""
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        path = tmp_path_factory.mktemp("policy")
        transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**TINY)).save_pretrained(path)
        made.append(str(path))
    return made[0], made[1]


def held_back(**changes: Any) -> LearnerConfig:
    kl = {"coef": 0.1} | {name: changes.pop(name) for name in ("reference", "refresh_every") if name in changes}
    return config_with(lr=1e-2, kl=KlConfig(**kl), **changes)


def logprobs(rank: LearnerRank, other: OtherWeights | None = None) -> torch.Tensor:
    """Of some tokens, by the policy or by other weights."""
    groups = draw_groups(7)
    (batch,) = pack(groups, rank.config.aggregation, count(groups), 0, True, 4096)
    with torch.no_grad():
        if other is None:
            return rank.policy(batch)[0].clone()
        with other.in_place() as policy:
            return policy(batch)[0].clone()


def reference_of(rank: LearnerRank) -> OtherWeights:
    found = rank.policy_step.policies.reference
    assert found is not None
    return found


ADAPTERS = pytest.mark.parametrize("adapter", [{}, {"adapter": Lora(rank=2)}], ids=["whole", "lora"])


@ADAPTERS
def test_the_start_stays_the_reference(policies: tuple[str, str], adapter: dict[str, Any]) -> None:
    with running_rank(policies[0], held_back(**adapter)) as rank:
        start = logprobs(rank)
        found = [rank.step([draw_groups(step)], step)["reference_kl"] for step in range(2)]
        assert torch.equal(logprobs(rank, reference_of(rank)), start) and not torch.equal(logprobs(rank), start)
        assert isinstance(reference_of(rank), WithoutAdapter if adapter else SecondWeights), (
            "an adapter's base is there"
        )
        assert not rank.second, "what never changes is no state"
    assert found[0] == 0.0 < found[1]


@ADAPTERS
def test_the_kl_is_nothing_right_after_a_refresh_and_something_between(
    policies: tuple[str, str], adapter: dict[str, Any]
) -> None:
    with running_rank(policies[0], held_back(refresh_every=2, **adapter)) as rank:
        found = [rank.step([draw_groups(step)], step)["reference_kl"] for step in range(4)]
    assert [kl == 0.0 for kl in found] == [True, False, True, False]


@ADAPTERS
def test_a_path_is_that_policy_and_the_policy_is_its_own_again_afterwards(
    policies: tuple[str, str], adapter: dict[str, Any]
) -> None:
    path, other = policies
    with running_rank(other, config_with()) as rank:
        expected = logprobs(rank)
    with running_rank(path, held_back(reference=other, trainable=".*" if adapter else r"layers\.1", **adapter)) as rank:
        rank.step([draw_groups(0)], 0)
        own, weights = logprobs(rank), weights_of(rank)
        assert torch.equal(logprobs(rank, reference_of(rank)), expected)
        assert torch.equal(logprobs(rank), own)
        assert all(torch.equal(weights[name], value) for name, value in weights_of(rank).items())
        with pytest.raises(RuntimeError, match="out of memory"), reference_of(rank).in_place():
            raise RuntimeError("out of memory")
        assert torch.equal(logprobs(rank), own), "an error in the middle leaves the policy as it was"


def by_plan(rank: int, ranks: int, path: str, config: dict[str, Any], plan: Plan) -> None:
    """On one rank of a process group."""
    torch.set_num_threads(1)
    learner = LearnerRank(
        LearnerConfig.model_validate(config | {"world_size": ranks}), LearnerJob(path, TOTAL_STEPS), rank, ranks
    )
    learner.prepare()
    follow(learner, ranks, plan)


@ADAPTERS
def test_a_resumed_run_is_the_unbroken_one_with_its_refreshed_reference(
    policies: tuple[str, str], adapter: dict[str, Any], tmp_path: Path, on_two_ranks: OnTwoRanks
) -> None:
    """Bit for bit, on two ranks; one rank reads what two wrote."""
    config = held_back(refresh_every=2, **adapter).model_dump()
    half, unbroken, resumed, alone = (tmp_path / name for name in ("half", "unbroken", "resumed", "alone"))
    steps: Plan = [("step", 3), ("step", 4)]
    first: Plan = [("step", 0), ("step", 1), ("step", 2), ("save", half), *steps, ("save", unbroken)]
    on_two_ranks(by_plan, policies[0], config, first)
    on_two_ranks(by_plan, policies[0], config, [("load", half), *steps, ("save", resumed)])
    on_one_rank(by_plan, policies[0], config, [("load", half), ("save", alone)])
    held = {name: contents(tmp_path / name) for name in ("half", "unbroken", "resumed", "alone")}
    references = [name for name in held["half"] if name.startswith("reference.")]
    assert references and any(not torch.equal(held["half"][name], held["unbroken"][name]) for name in references)
    for one, other in (("unbroken", "resumed"), ("half", "alone")):
        assert held[one].keys() == held[other].keys()
        assert {name for name in held[one] if not torch.equal(held[one][name], held[other][name])} <= {"files"}


def test_a_checkpoint_without_the_reference_is_refused(policies: tuple[str, str], tmp_path: Path) -> None:
    with running_rank(policies[0], held_back()) as rank:
        rank.save(tmp_path / "kept")
    with (
        pytest.raises(CheckpointError, match=r"it has no reference\.\S+ .* learner\.kl that wrote it"),
        running_rank(policies[0], held_back(refresh_every=2)) as rank,
    ):
        rank.load(tmp_path / "kept")


def test_an_adapter_on_another_base_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kl\.refresh_every = 2 would make of kl\.reference = /there a policy"):
        held_back(reference="/there", refresh_every=2, adapter=Lora())


def test_the_plan_counts_what_the_reference_has_otherwise() -> None:
    shape = PolicyShape(1_000_000, 2, 64, 128, 64, 32, 1000, True)

    def held(config: LearnerConfig, trained: int) -> float:
        return footprint(shape, config, trained).beside

    assert held(config_with(), 1_000_000) == 0.0
    assert held(held_back(world_size=2), 1_000_000) == 2_000_000
    assert held(held_back(), 300_000) == 4 * 300_000
    assert held(held_back(adapter=Lora()), 10_000) == 0.0
    assert held(held_back(adapter=Lora(), refresh_every=5), 10_000) == 40_000
    assert held(held_back(adapter=Lora(), reference="/there"), 10_000) == 4_000_000

"""What the learner trades for memory changes no number; two ranks; and the learner needs neither Ray nor vLLM."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from learner.config import LearnerConfig, MemoryConfig
from learner.errors import LearnerError
from learner.job import LearnerJob
from learner.optim import AdamW
from learner.optim.offload import step_offloaded
from tests.gloo_ranks import OnTwoRanks, on_one_rank
from tests.made_policies import write_tiny
from tests.made_samples import made_group

pytestmark = pytest.mark.unit


def step_of(rank: int, ranks: int, path: str, memory: dict[str, Any], dtype: Literal["float32", "bfloat16"]) -> Any:
    """(loss, gradient norm, exported weights) after a step on four groups, shared out over the ranks."""
    from learner.rank import LearnerRank

    config = LearnerConfig(
        world_size=ranks,
        dtype=dtype,
        entropy_coef=0.01,
        microbatch_tokens=40,
        trainable=".*",
        optimizer=AdamW(lr=1e-3),
        memory=MemoryConfig(**memory),
    )
    learner = LearnerRank(config, LearnerJob(path, 10), rank, ranks)
    learner.prepare()
    groups = [made_group(f"{i}", 3 + i, [4, 2, 6], seed=i) for i in range(4)]
    metrics = learner.step([groups[rank::ranks]], 0)
    packed = learner.export_weights(1)
    if packed is None:
        return None
    from actors.weights.block import open_tensors

    weights = {name: tensor.clone() for name, tensor in open_tensors(packed[0].manifest, packed[1]).items()}
    return metrics["loss"], metrics["grad_norm"], weights


@pytest.mark.parametrize("tied", [True, False])
def test_two_ranks_step_as_one_with_a_head_in_many_chunks(tmp_path: Path, on_two_ranks: OnTwoRanks, tied: bool) -> None:
    """The gradient of a hand-written function goes through FSDP's reduction, also where embedding and head are one weight."""
    path = write_tiny(tmp_path, tie_word_embeddings=tied)
    chunks = {"logit_elements": 100}
    loss, norm, weights = on_one_rank(step_of, path, {}, "float32")
    other_loss, other_norm, other_weights = on_two_ranks(step_of, path, chunks, "float32")[0]
    assert other_loss == pytest.approx(loss, rel=1e-6) and other_norm == pytest.approx(norm, rel=1e-6)
    # Adam's first step is the gradient's sign: what is near 0 may round to either side.
    for name, weight in weights.items():
        near = torch.isclose(other_weights[name], weight, rtol=0, atol=1e-5)
        assert float(near.float().mean()) > 0.999, name


@pytest.mark.parametrize("memory", [{"offload_optimizer": True}, {"activation_checkpointing": "selective"}])
def test_what_is_traded_for_memory_changes_no_bit(tmp_path: Path, memory: dict[str, Any]) -> None:
    path = write_tiny(tmp_path)
    plain, traded = (on_one_rank(step_of, path, each, "float32") for each in ({}, memory))
    assert plain[:2] == traded[:2]
    assert all(torch.equal(plain[2][name], weight) for name, weight in traded[2].items())


@pytest.mark.parametrize("elements", [1, 40, 10**6])
def test_an_optimiser_steps_in_parts_as_it_steps_whole(elements: int) -> None:
    def stepped(step: Any) -> tuple[list[torch.Tensor], list[list[Any]]]:
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(size, 3)) for size in (4, 20, 1, 7)]
        optimizer = torch.optim.AdamW(
            [{"params": parameters[:2], "lr": 0.1}, {"params": parameters[2:], "lr": 0.01}], fused=True
        )
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            step(optimizer)
        return [each.detach() for each in parameters], [group["params"] for group in optimizer.param_groups]

    whole, groups = stepped(lambda optimizer: optimizer.step())
    parts, other_groups = stepped(lambda optimizer: step_offloaded(optimizer, elements))
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))
    assert [len(group) for group in groups] == [len(group) for group in other_groups] == [2, 2]


def test_a_head_that_cannot_be_had_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = write_tiny(tmp_path)
    with pytest.raises(ValueError, match=r"learner\.memory\.head: liger cannot be used: .+; auto or chunked can"):
        on_one_rank(step_of, path, {"head": "liger"}, "float32")


def test_compiling_without_a_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny(tmp_path)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(LearnerError, match=r"learner\.memory\.compile: no C\+\+ compiler"):
        on_one_rank(step_of, path, {"compile": True}, "float32")


@pytest.mark.long
def test_compiled_layers_give_the_same_step(tmp_path: Path) -> None:
    path = write_tiny(tmp_path)
    plain, compiled = (on_one_rank(step_of, path, each, "float32") for each in ({}, {"compile": True}))
    assert compiled[0] == pytest.approx(plain[0], rel=1e-5) and compiled[1] == pytest.approx(plain[1], rel=1e-4)


def test_gradients_add_up_in_float32_over_microbatches(tmp_path: Path) -> None:
    """A bfloat16 step in many microbatches: sums in bfloat16 would lose what is 256 times smaller than the sum."""
    path = write_tiny(tmp_path)
    loss, norm, _ = on_one_rank(step_of, path, {}, "bfloat16")
    exact_loss, exact_norm, _ = on_one_rank(step_of, path, {}, "float32")
    assert loss == pytest.approx(exact_loss, abs=0.02) and norm == pytest.approx(exact_norm, rel=0.03)


def test_the_learner_below_its_ray_shell_needs_neither_ray_nor_vllm() -> None:
    modules = sorted(
        ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for path in Path("learner").rglob("*.py")
        if path.name not in ("actor.py", "group.py")
    )
    assert "learner.rank" in modules and "learner.model.policy" in modules
    blocked = "import sys; sys.modules.update({'ray': None, 'vllm': None})"
    code = f"{blocked}\nimport importlib\nfor name in {modules!r}: importlib.import_module(name)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

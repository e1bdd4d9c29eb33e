"""The learner below its Ray shell on one GPU, over NCCL at world size 1.

On a machine with torch and transformers but neither Ray nor vLLM: `python3 -m pytest tests/gpu --confcutdir=tests/gpu`.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from learner.config import LearnerConfig, MemoryConfig
from learner.job import LearnerJob
from learner.model.logprobs import token_logprobs
from learner.optim import AdamW
from tests.made_policies import write_tiny
from tests.made_samples import made_group

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here: not run"),
]
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    shape = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "head_dim": 16}
    return write_tiny(tmp_path_factory.mktemp("policy"), **shape)


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def stepped(path: str, gpus: int, steps: int = 1, **changes: object) -> dict[str, float]:
    from learner.rank import LearnerRank

    config = LearnerConfig(**({"gpus": gpus, "optimizer": AdamW(lr=1e-4)} | changes))  # type: ignore[arg-type]
    rank = LearnerRank(config, LearnerJob(path, 10), 0, 1)
    try:
        rank.setup("127.0.0.1", 0, timeout_s=60.0)
        groups = [made_group(f"{i}", 5 + i, [9, 4, 7], seed=i) for i in range(4)]
        for step in range(steps):
            metrics = rank.step([groups], step)
        return metrics
    finally:
        rank.close()


def test_loss_and_gradient_are_those_of_the_cpu(policy_path: str) -> None:
    here, there = (stepped(policy_path, gpus, entropy_coef=0.01) for gpus in (0, 1))
    assert there["loss"] == pytest.approx(here["loss"], rel=1e-4, abs=1e-6)
    assert there["grad_norm"] == pytest.approx(here["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    "memory",
    [
        {"activation_checkpointing": "layer"},
        {"activation_checkpointing": "selective"},
        {"offload_optimizer": True},
        {"compile": True},
        {"logit_elements": 500},
    ],
)
def test_what_is_traded_for_memory_changes_no_result(policy_path: str, memory: dict[str, object]) -> None:
    plain = stepped(policy_path, 1, steps=3)
    traded = stepped(policy_path, 1, steps=3, memory=MemoryConfig(**memory))  # type: ignore[arg-type]
    assert traded["loss"] == pytest.approx(plain["loss"], rel=1e-4, abs=1e-6)
    assert traded["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)


def test_offloaded_state_rests_in_host_memory() -> None:
    from learner.optim.offload import step_offloaded

    parameters = [torch.nn.Parameter(torch.randn(100, 10, device=GPU)) for _ in range(3)]
    twins = [torch.nn.Parameter(each.detach().clone()) for each in parameters]
    optimizer, plain = (torch.optim.AdamW(each, lr=0.1, fused=True) for each in (parameters, twins))
    for _ in range(3):
        for parameter, twin in zip(parameters, twins, strict=True):
            parameter.grad = torch.randn_like(parameter)
            twin.grad = parameter.grad.clone()
        step_offloaded(optimizer, elements=1500)
        plain.step()
    assert all(optimizer.state[each]["exp_avg"].device.type == "cpu" for each in parameters)
    assert all(torch.equal(one, other) for one, other in zip(parameters, twins, strict=True))


def head_inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    hidden = torch.randn(300, 256, dtype=dtype, device=GPU, requires_grad=True)
    weight = (0.05 * torch.randn(4000, 256, device=GPU)).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, 4000, (300,), device=GPU), torch.ones(300, device=GPU)


@pytest.mark.parametrize(("dtype", "bound", "grad_bound"), [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 1e-4, 1e-2)])
@pytest.mark.parametrize("head", ["chunked", "compiled", "liger"])
def test_the_head_is_that_of_float64(head: str, dtype: torch.dtype, bound: float, grad_bound: float) -> None:
    """bfloat16: products of bfloat16 inputs, summed and kept in float32; the logits' gradient is rounded once."""
    from learner.model.liger import liger_logprobs, why_not_liger

    hidden, weight, targets, temperatures = head_inputs(dtype)
    if head == "liger":
        reason = why_not_liger(GPU, dtype, None, None)
        if reason is not None:
            pytest.skip(f"not run: {reason}")
        logprobs, entropy = liger_logprobs(hidden, weight, targets, temperatures, True)
    else:
        arguments = (hidden, weight, None, targets, temperatures, 50_000, True, None)
        logprobs, entropy = token_logprobs(*arguments, compiled=head == "compiled")
    exact_hidden, exact_weight = (each.detach().double().requires_grad_() for each in (hidden, weight))
    logs = (exact_hidden @ exact_weight.T).log_softmax(dim=1)
    expected, expected_entropy = logs.gather(1, targets[:, None])[:, 0], -(logs.exp() * logs).sum(dim=1)
    (logprobs + 0.1 * entropy).sum().backward()
    (expected + 0.1 * expected_entropy).sum().backward()
    for found, wanted, within in (
        (logprobs, expected, bound),
        (entropy, expected_entropy, bound),
        (hidden.grad, exact_hidden.grad, grad_bound),
        (weight.grad, exact_weight.grad, grad_bound),
    ):
        assert found is not None and wanted is not None
        assert float((found.double() - wanted).norm() / wanted.norm()) < within


def test_the_head_takes_the_memory_of_a_chunk() -> None:
    hidden, weight, targets, temperatures = head_inputs(torch.bfloat16)
    elements = 2**16
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    token_logprobs(hidden, weight, None, targets, temperatures, elements, False)[0].sum().backward()
    gradients = 2 * weight.numel() + 6 * hidden.numel()
    assert torch.cuda.max_memory_allocated() - before < gradients + 24 * elements + 2**20


def test_forward_and_backward_never_wait_for_the_gpu(policy_path: str) -> None:
    from learner.rank import LearnerRank

    config = LearnerConfig(gpus=1, dtype="bfloat16", memory=MemoryConfig(logit_elements=500))
    rank = LearnerRank(config, LearnerJob(policy_path, 10), 0, 1)
    try:
        rank.setup("127.0.0.1", 0, timeout_s=60.0)
        groups = [made_group(f"{i}", 5 + i, [9, 4, 7], seed=i) for i in range(4)]
        rank.step([groups], 0)  # makes what the first step makes
        from learner.batching.pack import count, pack

        (batch,) = pack(groups, config.aggregation, count(groups), 0, True, 8192)
        pinned = replace(batch, **{name: tensor.pin_memory() for name, tensor in batch.tensors().items()})  # type: ignore[arg-type]
        torch.cuda.set_sync_debug_mode("error")
        try:
            on_gpu = pinned.to(GPU)
            loss, _ = rank.objective(on_gpu, *rank.policy(on_gpu))
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert np.isfinite(float(loss))
    finally:
        rank.close()

"""Float32 matrix products on a CPU: by oneDNN where MKL, which keeps AVX-512 to the processors of its maker, is half as fast."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


def _one_dnn_is_faster() -> bool:
    cpus = Path("/proc/cpuinfo")
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and cpus.exists()
        and "GenuineIntel" not in cpus.read_text(encoding="utf-8")
    )


ONE_DNN = _one_dnn_is_faster()
"""Whether products of this process are oneDNN's. Sums are in float32 in both, and in another order."""

torch.library.define("bvblend::linear", "(Tensor inputs, Tensor weight, Tensor? bias) -> Tensor")
# An operator of our own: torch.compile takes oneDNN's apart, and cannot put it together where weights change.
LINEAR = torch.ops.bvblend.linear.default
"""[…, k], [n, k] and [n] to […, n], by oneDNN. Has no gradient."""


@torch.library.impl("bvblend::linear", "CPU")
def _linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return found


@torch.library.register_fake("bvblend::linear")
def _shape(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return inputs.new_empty(*inputs.shape[:-1], weight.shape[0])


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """[m, n] of [m, k] and [k, n]."""
    return LINEAR(left, right.T, None) if _suits(left) else torch.mm(left, right)


def outer(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """[m, n] of [t, m] and [t, n]: the sum over t."""
    if not _suits(left):
        return torch.mm(left.T, right)
    # It is faster with few rows and many columns.
    return LINEAR(left.T, right.T, None) if left.shape[1] <= right.shape[1] else LINEAR(right.T, left.T, None).T


def speed_up(model: nn.Module) -> None:
    """Have the linear layers of a model compute by oneDNN, where that is faster. Changed in place."""
    if not ONE_DNN:
        return
    layers: list[Any] = [module for module in model.modules() if type(module) is nn.Linear]
    for layer in layers:
        layer.forward = partial(_forward, layer)


def _suits(tensor: torch.Tensor) -> bool:
    return ONE_DNN and tensor.dtype is torch.float32 and tensor.device.type == "cpu"


def _forward(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    if not _suits(inputs) or layer.weight.dtype is not torch.float32:
        return functional.linear(inputs, layer.weight, layer.bias)
    found: torch.Tensor = _Linear.apply(inputs, layer.weight, layer.bias)
    return found


class _Linear(torch.autograd.Function):
    """What torch's own linear layer computes, in both directions."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        return LINEAR(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            LINEAR(gradient, weight.T, None) if wanted[0] else None,
            outer(rows, inputs.flatten(0, -2)) if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
        )

"""Liger's fused output head, for Hopper GPUs in bfloat16. Imported where it is used: a package that few have installed."""

import importlib.util
from typing import Any

import torch

from learner.model.logits import LogitTransform


def why_not_liger(device: torch.device, dtype: torch.dtype, bias: Any, transform: LogitTransform | None) -> str | None:
    """What keeps Liger's head from being used here; None where nothing does."""
    if importlib.util.find_spec("liger_kernel") is None or importlib.util.find_spec("cutlass") is None:
        return "liger-kernel[cutedsl] is not installed"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return "its kernel is for Hopper GPUs"
    if dtype != torch.bfloat16:
        return "it computes in bfloat16 (learner.dtype)"
    if bias is not None or transform is not None:
        return "the policy's head has a bias, or its logits go through a scale or a cap"
    return None


def liger_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperatures: torch.Tensor, entropy_grad: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `token_logprobs`. The hidden states are divided by the temperature and rounded, which a temperature of 1 leaves alone."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    scaled = (hidden.float() / temperatures[:, None]).to(hidden.dtype)
    losses, entropy = LigerFusedLinearScaledCrossEntropyFunction.apply(scaled, weight, targets, return_entropy=True)
    return -losses.float(), (entropy if entropy_grad else entropy.detach()).float()

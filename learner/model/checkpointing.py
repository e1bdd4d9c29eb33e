"""Activation checkpointing of a decoder layer: what the backward pass computes again instead of keeping it."""

from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from learner.model.products import LINEAR

CHECKPOINT_WRAPPER = "_checkpoint_wrapped_module."
"""What a checkpointed layer puts into the names of its parameters."""

KEPT = frozenset(
    getattr(torch.ops.aten, name).default
    for name in (
        "mm",
        "addmm",
        "bmm",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_flash_attention_forward",
    )
) | {LINEAR}
"""Costly to compute for what they hold. All else of a layer is element by element."""


def checkpointed(layer: nn.Module, kind: str) -> nn.Module:
    """The layer, keeping all of its activations (`none`), its input alone (`layer`), or what KEPT made (`selective`).

    There is no dropout in the learner, so no state of a random generator is put back.
    """
    if kind == "none":
        return layer
    options: dict[str, Any] = {"context_fn": _keep_costly} if kind == "selective" else {}
    return checkpoint_wrapper(layer, preserve_rng_state=False, **options)


def _keep_costly() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE

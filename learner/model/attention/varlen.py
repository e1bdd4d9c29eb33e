"""Exact attention along tries on a GPU: blocks of any length in one call of torch's varlen FlashAttention, joined by their log-sum-exps.

The blocks are those of `merged.py`, and so is the reason why their gradients add up: one call for what segments see of themselves, and
one for each depth of the tries, since what lies below segments of one depth never overlaps.
"""

from typing import Any

import torch

from learner.model.attention.blocks import TrieBlocks, Where
from learner.model.attention.merged import merge

_forward = torch.ops.aten._flash_attention_forward
_backward = torch.ops.aten._flash_attention_backward


def varlen_fits(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether FlashAttention takes them: half precision on an Ampere GPU or later, heads of one size up to 256."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


class VarlenAttention(torch.autograd.Function):
    """[T, H, D] of queries [T, H, D], keys and values [T, H or fewer, D] that `varlen_fits`."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocks: TrieBlocks, scale: float
    ) -> torch.Tensor:
        calls = (blocks.varlen_own, *blocks.varlen_above)
        out, lse, states = None, None, []
        for call in calls:
            part, part_lse, state, *_ = _forward(
                *(_taken(each, at) for each, at in zip((query, key, value), call.places, strict=True)),
                *(call.query_starts, call.key_starts, call.longest_query, call.longest_key),
                *(0.0, call.causal, False),
                scale=scale,
            )
            states.append(state)
            if out is None or lse is None:
                out, lse = part, part_lse.T.contiguous()
            else:
                merge(out, lse, call.places[0], part, part_lse.T)
        assert out is not None and lse is not None
        ctx.save_for_backward(query, key, value, out, lse, *states)
        ctx.calls, ctx.scale = calls, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse, *states = ctx.saved_tensors
        grads: list[torch.Tensor] = []
        for call, state in zip(ctx.calls, states, strict=True):
            at = call.places[0]
            parts = _backward(
                _taken(grad.contiguous(), at),
                *(_taken(each, where) for each, where in zip((query, key, value), call.places, strict=True)),
                _taken(out, at),
                _taken(lse, at).T.contiguous(),
                *(call.query_starts, call.key_starts, call.longest_query, call.longest_key),
                *(0.0, call.causal, state, query.new_empty(0)),
                scale=ctx.scale,
            )
            if not grads:
                grads = [part.contiguous() for part in parts]
                continue
            for into, where, part in zip(grads, call.places, parts, strict=True):
                into.index_add_(0, where, part)
        return *grads, None, None


def _taken(tensor: torch.Tensor, at: Where) -> torch.Tensor:
    return tensor[at] if isinstance(at, slice) else tensor.index_select(0, at)

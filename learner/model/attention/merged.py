"""Exact attention along tries from blocks without masks: each by a flash kernel, joined by their log-sum-exps.

A kernel's backward pass, given the output and the log-sum-exp of *all* that a query sees instead of the block's own, returns the
block's part of the gradient. Source: FlashAttention-2 (arXiv 2307.08691), section 3.1.
"""

from typing import Any

import torch

from learner.model.attention.blocks import Call, TrieBlocks, Where

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class MergedAttention(torch.autograd.Function):
    """[T, H, D] of queries [T, H, D], keys and values [T, H or fewer, D] on a CPU."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocks: TrieBlocks, scale: float
    ) -> torch.Tensor:
        out = query.new_empty(query.shape)
        lse = query.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
        for call in blocks.own:
            part, part_lse = _attend(call, query, key, value, True, scale)
            out[call.query_at], lse[call.query_at] = part, part_lse
        for call in blocks.above:
            merge(out, lse, call.query_at, *_attend(call, query, key, value, False, scale))
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.blocks, ctx.scale = blocks, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        grads = [torch.empty_like(each, memory_format=torch.contiguous_format) for each in (query, key, value)]
        for causal, calls in ((True, ctx.blocks.own), (False, ctx.blocks.above)):
            for call in calls:
                places = (call.query_at, call.key_at, call.key_at)
                parts = _backward(
                    _blocks(grad, call.query_at, call.count),
                    *(_blocks(each, at, call.count) for each, at in zip((query, key, value), places, strict=True)),
                    _blocks(out, call.query_at, call.count),
                    _blocks(lse, call.query_at, call.count),
                    0.0,
                    causal,
                    scale=ctx.scale,
                )
                for into, at, part in zip(grads, places, parts, strict=True):
                    flat = _flat(part)
                    if causal:
                        into[at] = flat
                    elif isinstance(at, slice):
                        into[at] += flat
                    else:
                        into.index_add_(0, at, flat)
        return *grads, None, None


def merge(out: torch.Tensor, lse: torch.Tensor, at: Where, part: torch.Tensor, part_lse: torch.Tensor) -> None:
    """Take what queries see beside into their outputs [T, H, D] and log-sum-exps [T, H], in place; `part` is that of tokens `at`."""
    # Of two shares of a softmax, the second has the sigmoid of how far its log-sum-exp is above the other's.
    share = torch.sigmoid(part_lse - lse[at])[..., None]
    out[at] = torch.lerp(out[at].to(share.dtype), part.to(share.dtype), share).to(out.dtype)
    lse[at] = torch.logaddexp(lse[at], part_lse)


def _attend(
    call: Call, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """([n * queries, H, D], [n * queries, H]) outputs and log-sum-exps of a call's blocks."""
    out, lse = _forward(
        _blocks(query, call.query_at, call.count),
        _blocks(key, call.key_at, call.count),
        _blocks(value, call.key_at, call.count),
        0.0,
        causal,
        scale=scale,
    )
    return _flat(out), _flat(lse)


def _blocks(tensor: torch.Tensor, at: Where, count: int) -> torch.Tensor:
    """[n, H, L, ...] of [T, H, ...]."""
    taken = tensor[at] if isinstance(at, slice) else tensor.index_select(0, at)
    return taken.unflatten(0, (count, -1)).transpose(1, 2)


def _flat(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.transpose(1, 2).flatten(0, 1)

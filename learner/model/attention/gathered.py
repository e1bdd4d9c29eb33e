"""Attention along tries over gathered keys, a few queries at a time: for windows, caps, sinks, and float32 on a GPU."""

import numpy as np
import torch
from torch.nn import functional as F

from learner.model.attention.blocks import TrieBlocks, on_device

QUERIES = 512
"""Queries of a segment that are computed at once; their mask is [queries, path]."""


def gathered_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: TrieBlocks,
    scale: float,
    window: int | None = None,
    cap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T, H, Dv] of queries [T, H, D], keys [T, K, D] and values [T, K, Dv].

    window: how many tokens a query sees, itself among them.    cap: scores are cap * tanh(scores / cap).    sinks: [H] scores of
    a key without a value that every query sees.
    """
    groups = query.shape[1] // key.shape[1]
    starts, parents = blocks.segments.starts, blocks.segments.parents
    paths: list[np.ndarray] = []
    outs = []
    for segment, parent in enumerate(parents.tolist()):
        own = np.arange(starts[segment], starts[segment + 1])
        path = np.concatenate([paths[parent], own]) if parent >= 0 else own
        paths.append(path)
        for first in range(len(path) - len(own), len(path), QUERIES):
            last = min(first + QUERIES, len(path))
            seen_from = 0 if window is None else max(0, first - window + 1)
            keys = on_device(path[seen_from:last], query.device)
            at = torch.arange(first, last, device=query.device)[:, None]
            seen = torch.arange(seen_from, last, device=query.device)
            visible = seen <= at
            if window is not None:
                visible &= seen > at - window
            q = query[int(path[first]) : int(path[first]) + last - first].transpose(0, 1)
            k, v = (each.index_select(0, keys).transpose(0, 1).repeat_interleave(groups, 0) for each in (key, value))
            outs.append(_attend(q, k, v, visible, scale, cap, sinks).transpose(0, 1))
    return torch.cat(outs)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    scale: float,
    cap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    if cap is None and sinks is None:
        return F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=visible, scale=scale)[0]
    scores = (query @ key.transpose(1, 2)) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].to(scores.dtype).expand(-1, scores.shape[1], 1)], dim=-1)
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return shares[..., : key.shape[1]] @ value

"""The attention function that decoders of transformers are given for packed tries.

It has no mask function beside it, so that transformers builds no mask and does not read positions as those of packed sequences.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from learner.model.attention.blocks import TrieBlocks
from learner.model.attention.gathered import gathered_attention
from learner.model.attention.merged import MergedAttention
from learner.model.attention.varlen import VarlenAttention, varlen_fits

TRIE_ATTENTION = "bvblend_tries"


@torch.compiler.disable
def trie_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    tries: TrieBlocks | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """([1, T, H, D], None) of [1, H, T, D] queries, keys and values of packed tries. Raises ValueError where it does not fit."""
    if tries is None or attention_mask is not None or position_bias is not None:
        raise ValueError(f"{type(module).__name__} cannot attend along tries: it passes a mask or bias, or no tries")
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window = sliding_window if sliding_window is not None and sliding_window < tries.longest else None
    plain = window is None and softcap is None and s_aux is None
    if plain and query.device.type == "cpu" and q.shape[-1] == v.shape[-1]:
        return MergedAttention.apply(q, k, v, tries, scale)[None], None
    if plain and varlen_fits(q, v):
        return VarlenAttention.apply(q, k, v, tries, scale)[None], None
    return gathered_attention(q, k, v, tries, scale, window, softcap, s_aux)[None], None


AttentionInterface.register(TRIE_ATTENTION, trie_attention)

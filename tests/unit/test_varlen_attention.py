"""The arrays that a varlen kernel is given on a GPU, with such a kernel in plain torch: the attention of the CPU, by hypothesis' tries."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.model.attention import varlen
from learner.model.attention.merged import MergedAttention
from learner.model.attention.varlen import VarlenAttention
from tests.made_tries import blocks_of

pytestmark = pytest.mark.unit
sequences = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=7), min_size=1, max_size=8)


def scores_of(q: torch.Tensor, k: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1)) * scale
    return scores.masked_fill(~torch.ones(scores.shape[1:], dtype=torch.bool).tril(), -torch.inf) if causal else scores


def spans(starts: torch.Tensor, longest: int) -> list[slice]:
    assert starts.dtype == torch.int32 and int(starts.diff().max()) == longest
    return [slice(a, b) for a, b in itertools.pairwise(starts.tolist())]


def forward(
    q: Any, k: Any, v: Any, q_starts: Any, k_starts: Any, max_q: int, max_k: int, *more: Any, scale: float
) -> Any:
    """`aten._flash_attention_forward`, a block at a time."""
    outs, lses = [], []
    for queries, keys in zip(spans(q_starts, max_q), spans(k_starts, max_k), strict=True):
        scores = scores_of(q[queries], k[keys], more[1], scale)
        values = v[keys].repeat_interleave(q.shape[1] // v.shape[1], 1)
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
        lses.append(scores.logsumexp(-1))
    return torch.cat(outs), torch.cat(lses, 1), torch.zeros(2), None, None


def backward(
    grad: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    q_starts: Any,
    k_starts: Any,
    max_q: int,
    max_k: int,
    *more: Any,
    scale: float,
) -> Any:
    """`aten._flash_attention_backward`: of the outputs and log-sum-exps that it is given."""
    times = q.shape[1] // k.shape[1]
    found = [torch.zeros_like(each) for each in (q, k, v)]
    for queries, keys in zip(spans(q_starts, max_q), spans(k_starts, max_k), strict=True):
        shares = (scores_of(q[queries], k[keys], more[1], scale) - lse[:, queries, None]).exp()
        to_shares = torch.einsum("qhd,khd->hqk", grad[queries], v[keys].repeat_interleave(times, 1))
        to_scores = shares * (to_shares - (grad[queries] * out[queries]).sum(-1).T[..., None]) * scale
        found[0][queries] += torch.einsum("hqk,khd->qhd", to_scores, k[keys].repeat_interleave(times, 1))
        for into, weights, other in ((found[1], to_scores, q), (found[2], shares, grad)):
            into[keys] += torch.einsum("hqk,qhd->khd", weights, other[queries]).unflatten(1, (-1, times)).sum(2)
    return tuple(found)


@settings(deadline=None, max_examples=40)
@given(st.lists(sequences, min_size=1, max_size=3))
def test_varlen_blocks_joined_are_the_attention_of_the_cpu(lists: list[list[list[int]]]) -> None:
    blocks = blocks_of(lists)
    torch.manual_seed(0)
    size = len(blocks.positions)
    inputs = [torch.randn(size, heads, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    upstream = torch.randn(size, 4, 4, dtype=torch.float64)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "_forward", forward)
        patch.setattr(varlen, "_backward", backward)
        for kind in (MergedAttention, VarlenAttention):
            out = kind.apply(*inputs, blocks, 0.5)
            found.append((out, *torch.autograd.grad(out, inputs, upstream)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)

"""Attention along tries on a GPU: varlen FlashAttention in bfloat16, gathered keys in float32, both as the CPU's."""

import pytest
import torch

from learner.model.attention.blocks import TrieBlocks
from learner.model.attention.gathered import gathered_attention
from learner.model.attention.merged import MergedAttention
from learner.model.attention.varlen import VarlenAttention, varlen_fits
from tests.made_tries import blocks_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here: not run"),
]
GPU = torch.device("cuda", 0)
PROMPT = [1, 0] * 40
TREES = {
    "one prompt": [[[*PROMPT, *([i] * 70)] for i in range(2, 6)]],
    "late branches": [[[*PROMPT, 2, *([3] * 50), i, *([4] * (10 * i))] for i in range(5, 9)] + [PROMPT], [[7], [7, 8]]],
    "no sharing": [[[i] * (9 + i)] for i in range(30)],
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-5)])
def test_attention_on_the_gpu_is_that_of_the_cpu(tree: str, dtype: torch.dtype, bound: float) -> None:
    here = blocks_of(TREES[tree])
    torch.manual_seed(0)
    size = len(here.positions)
    inputs = [torch.randn(size, heads, 64).to(dtype) for heads in (8, 2, 2)]
    upstream = torch.randn(size, 8, 64).to(dtype)
    exact = [each.double().requires_grad_() for each in inputs]
    wanted = MergedAttention.apply(*exact, here, 0.125)
    wanted = (wanted, *torch.autograd.grad(wanted, exact, upstream.double()))
    there = TrieBlocks(here.segments, here.positions.to(GPU))
    q, k, v = (each.to(GPU).requires_grad_() for each in inputs)
    assert varlen_fits(q, v) == (dtype == torch.bfloat16)
    out = (
        VarlenAttention.apply(q, k, v, there, 0.125) if varlen_fits(q, v) else gathered_attention(q, k, v, there, 0.125)
    )
    found = (out, *torch.autograd.grad(out, (q, k, v), upstream.to(GPU)))
    for one, other in zip(found, wanted, strict=True):
        assert float((one.cpu().double() - other).norm() / other.norm()) < bound

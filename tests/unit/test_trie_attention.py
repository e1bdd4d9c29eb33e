"""Tries that hypothesis makes: trie, packed and padded forms have the gradients of a model's own forward, by architecture."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PretrainedConfig

from learner.aggregations import SeqMeanTokenMean
from learner.batching.pack import ScoredSamples, count, pack
from learner.batching.trie import build_trie, common_prefix, lexicographic
from learner.model.policy import Policy
from tests.made_hybrids import HYBRIDS, made_hybrid
from tests.made_samples import made_sample

pytestmark = pytest.mark.unit
SMALL: dict[str, Any] = {
    "vocab_size": 29,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
MADE: dict[str, Callable[[], PretrainedConfig]] = {
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL),
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "mistral": lambda: transformers.MistralConfig(**SMALL, sliding_window=5),
    "gemma": lambda: transformers.GemmaConfig(**SMALL),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, sliding_window=5, attn_logit_softcapping=2.0),
    "gpt_oss": lambda: transformers.GptOssConfig(**SMALL, sliding_window=5, num_local_experts=4),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
}
MADE |= {name: partial(made_hybrid, name, vocab_size=29, initializer_range=0.1) for name in HYBRIDS}
Turn = tuple[bool, list[int]]
sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=7)
turns = st.lists(
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 1), min_size=1, max_size=4)), min_size=1, max_size=3),
    min_size=1,
    max_size=5,
)


@given(sequences)
def test_a_trie_holds_every_prefix_once_depth_first(lists: list[list[int]]) -> None:
    arrays = [np.array(each, dtype=np.int32) for each in lists]
    ordered = [arrays[i] for i in lexicographic(arrays)]
    trie = build_trie(ordered, [0, *(common_prefix(a, b) for a, b in itertools.pairwise(ordered))])
    assert len(trie.tokens) == len({tuple(each[:n]) for each in lists for n in range(1, len(each) + 1)})
    starts = np.cumsum([0, *trie.lengths])
    segment_of = np.repeat(np.arange(len(trie.lengths)), trie.lengths)
    for sequence, places in zip(ordered, trie.places, strict=True):
        assert trie.tokens[places].tolist() == sequence.tolist()
        assert trie.positions[places].tolist() == list(range(len(sequence)))
        path = list(dict.fromkeys(segment_of[places].tolist()))
        assert [int(trie.parents[segment]) for segment in path] == [-1, *path[:-1]]
    below = [{segment} for segment in range(len(trie.parents))]
    for segment in reversed(range(len(trie.parents))):
        if trie.parents[segment] >= 0:
            below[trie.parents[segment]] |= below[segment]
    assert all(sorted(each) == list(range(min(each), max(each) + 1)) for each in below) and starts[-1] == len(
        segment_of
    )


@pytest.fixture(scope="module", params=MADE)
def policies(request: pytest.FixtureRequest) -> tuple[Policy, Policy, Policy]:
    """Trie, packed and padded forms of one model."""
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] | None = None
    made = []
    for shared, padded in ((True, False), (False, False), (False, True)):
        config = MADE[request.param]()
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
        state = state or model.state_dict()
        model.load_state_dict(state)
        policy = Policy(model, shared, entropy_grad=True)
        policy.padded = padded
        made.append(policy)
    return made[0], made[1], made[2]


def groups_of(trees: list[list[list[Turn]]]) -> list[ScoredSamples]:
    rng = np.random.default_rng(0)
    groups: list[ScoredSamples] = []
    for number, tree in enumerate(trees):
        samples = tuple(
            made_sample(str(number), i, [(False, [1, 2]), *parts, (True, [3])], rng) for i, parts in enumerate(tree)
        )
        groups.append((samples, rng.normal(size=len(samples))))
    return groups


def gradients(
    policy: Policy, groups: list[ScoredSamples], dtype: torch.dtype
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    policy.to(dtype).zero_grad(set_to_none=True)
    loss = torch.zeros((), dtype=dtype)
    for batch in pack(groups, SeqMeanTokenMean(), count(groups), 0, policy.share_prompt, 40, policy.padded):
        logprobs, _ = policy(replace(batch, temperatures=batch.temperatures.to(dtype)))
        part = (batch.weights * batch.advantages * logprobs).sum()
        part.backward()
        loss += part.detach()
    return loss, [p.grad.clone() for p in policy.parameters() if p.grad is not None]


def check_equal(policies: tuple[Policy, Policy, Policy], trees: list[list[list[Turn]]], dtype: torch.dtype) -> None:
    """To 1e-6, of the padded form's loss and of the norm of its gradient."""
    groups = groups_of(trees)
    found = [gradients(each, groups, dtype) for each in policies]
    padded_loss, padded = found[2]
    norm = torch.sqrt(sum((each.square().sum() for each in padded), torch.zeros(())))
    for loss, each in found[:2]:
        assert abs(loss - padded_loss) <= 1e-6 * max(1.0, float(padded_loss.abs()))
        apart = torch.sqrt(sum(((a - b).square().sum() for a, b in zip(each, padded, strict=True)), torch.zeros(())))
        assert apart <= 1e-6 * norm


@settings(max_examples=6, deadline=None)
@given(st.lists(turns, min_size=1, max_size=3))
def test_trie_packed_and_padded_forms_have_the_same_gradients(
    policies: tuple[Policy, Policy, Policy], trees: list[list[list[Turn]]]
) -> None:
    """In float64: in float32 samples may cancel, and what is left of the gradient is less than rounding."""
    check_equal(policies, trees, torch.float64)


def test_in_float32_too(policies: tuple[Policy, Policy, Policy]) -> None:
    late = [[(True, [1, 0]), (False, [0, 1, 1]), (True, tail)] for tail in ([1, 1, 0, 1], [1, 1, 1], [0], [0, 0, 1])]
    alone = [[(True, [0, 1, 0, 0, 1])], [(False, [1]), (True, [1, 1])]]
    check_equal(policies, [late, alone], torch.float32)

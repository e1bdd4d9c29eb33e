"""Rows, weights, packing and splits of the learner, and that packed rows say what a plain forward says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForCausalLM

from actors.rollout.payload import GroupPayload
from learner.batching.microbatch import (
    PAD_SEGMENT,
    TrainGroup,
    attention_mask,
    empty_microbatch,
    make_rows,
    pack_rows,
)
from learner.batching.split import balance, split_batch, split_evenly
from learner.model.policy import Policy
from moments_service.messages.groups import BlendedGroup, ScoredGroup

pytestmark = pytest.mark.unit
VOCABULARY = 97


def train_group(
    name: str, prompt: int, lengths: list[int], advantages: list[float | None] | None = None, temperature: float = 1.0
) -> TrainGroup:
    rng = np.random.default_rng(sum(name.encode()) + prompt)
    completions = tuple(rng.integers(0, VOCABULARY, n).astype(np.int32) for n in lengths)
    return TrainGroup(
        GroupPayload(
            group_id=name,
            prompt_ids=rng.integers(0, VOCABULARY, prompt).astype(np.int32),
            completions=completions,
            logprobs=tuple(-rng.random(n).astype(np.float32) for n in lengths),
            versions=tuple(np.zeros(n, dtype=np.int32) for n in lengths),
            temperature=temperature,
        ),
        tuple(rng.normal(size=len(lengths)).tolist()) if advantages is None else tuple(advantages),
    )


def blended_group(name: str, lengths: list[int], advantages: list[float | None]) -> BlendedGroup:
    errors = tuple("verifier crashed" if a is None else None for a in advantages)
    header = ScoredGroup(
        group_id=name,
        prompt_id=name,
        source="test",
        sequence=0,
        rewards=tuple(None if a is None else 1.0 for a in advantages),
        errors=errors,
        lengths=tuple(lengths),
        truncated=(False,) * len(lengths),
        policy_versions=(0, 0),
    )
    return BlendedGroup(header, f"payload of {name}", 0, tuple(advantages), 0.0, 1.0, 0.0)


def tiny_model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        initializer_range=0.3,
        attn_implementation="sdpa",
    )
    return Qwen3ForCausalLM(config).eval()


def plain_logprobs(model: Qwen3ForCausalLM, group: TrainGroup, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs and entropies of one completion, by a forward of its own and softmax in float64 numpy."""
    prompt, completion = group.payload.prompt_ids, group.payload.completions[i]
    ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].double().numpy() / group.payload.temperature
    logits = logits[len(prompt) - 1 : -1]
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs[np.arange(len(completion)), completion], -(np.exp(logs) * logs).sum(axis=1)


@pytest.mark.parametrize("share_prompt", [True, False])
@pytest.mark.parametrize("budget", [8192, 24])
def test_packed_rows_give_the_logprobs_of_a_plain_forward(share_prompt: bool, budget: int) -> None:
    model = tiny_model()
    policy = Policy(model, logprob_chunk=7, entropy_grad=False)
    groups = [
        train_group("a", 5, [3, 1, 6, 2]),
        train_group("b", 9, [4, 4], temperature=0.7),
        train_group("c", 1, [8, 1, 5], [0.5, None, -1.0]),
    ]
    rows = [row for group in groups for row in make_rows(group, 3, share_prompt, budget)]
    found = {}
    for batch in pack_rows(rows, budget, share_prompt):
        with torch.no_grad():
            logprobs, entropies = policy(batch)
        # The rollout log-probs are random numbers here, so each one identifies its token.
        keys = batch.rollout_logprobs.tolist()
        found |= dict(zip(keys, zip(logprobs.tolist(), entropies.tolist(), strict=True), strict=True))
    expected = 0
    for group in groups:
        for i in group.trained:
            logprobs, entropies = plain_logprobs(model, group, i)
            for key, logprob, entropy in zip(group.payload.logprobs[i].tolist(), logprobs, entropies, strict=True):
                assert found[key] == pytest.approx((logprob, entropy), abs=1e-5)
                expected += 1
    assert expected == len(found) == 3 + 1 + 6 + 2 + 8 + 8 + 5


def test_mask_lets_a_completion_see_its_prompt_and_itself_only() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 2, PAD_SEGMENT], [0, 1, 2, 2, 3, 3]])
    mask = attention_mask(segments)
    assert mask.shape == (2, 1, 6, 6)
    for row in range(2):
        for query in range(6):
            for key in range(6):
                same = segments[row, key] == segments[row, query]
                allowed = key <= query and bool(segments[row, key] == 0 or same)
                assert mask[row, 0, query, key] == allowed


@pytest.mark.parametrize("share_prompt", [True, False])
def test_weights_are_the_mean_over_tokens_then_completions_then_prompts(share_prompt: bool) -> None:
    groups = [train_group("a", 4, [3, 5], [1.0, 2.0]), train_group("b", 6, [2, 7, 4], [1.0, None, -1.0])]
    rows = [row for group in groups for row in make_rows(group, len(groups), share_prompt, 100)]
    batches = pack_rows(rows, 100, share_prompt)
    value = {float(x): float(x) ** 2 for g in groups for lp in g.payload.logprobs for x in lp}
    weighted = sum(
        weight * value[key]
        for batch in batches
        for weight, key in zip(batch.weights.tolist(), batch.rollout_logprobs.tolist(), strict=True)
    )
    squares = [[float(np.mean(np.square(g.payload.logprobs[i], dtype=np.float64))) for i in g.trained] for g in groups]
    assert weighted == pytest.approx(np.mean([np.mean(group) for group in squares]), rel=1e-6)
    assert sum(float(batch.weights.double().sum()) for batch in batches) == pytest.approx(1.0, rel=1e-6)


def test_advantages_follow_their_completions() -> None:
    group = train_group("a", 3, [2, 3, 1], [0.5, None, -2.0])
    (row,) = make_rows(group, 1, True, 100)
    assert row.advantages.tolist() == [0.5, 0.5, -2.0]
    assert row.targets.tolist() == [*group.payload.completions[0], *group.payload.completions[2]]


def test_a_group_longer_than_a_microbatch_repeats_its_prompt() -> None:
    group = train_group("a", 10, [5, 5, 5, 30])
    rows = make_rows(group, 1, True, 18)
    assert [len(row.tokens) for row in rows] == [18, 14, 39]
    assert sum(float(row.weights.sum()) for row in rows) == pytest.approx(1.0)
    assert sorted(batch.input_ids.shape for batch in pack_rows(rows, 18, True)) == [(1, 14), (1, 18), (1, 39)]


def test_nothing_to_train_on_makes_no_rows() -> None:
    assert make_rows(train_group("a", 3, [2, 0], [None, 1.0]), 1, True, 100) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=8), st.integers(8, 64))
def test_microbatches_keep_every_token_once_and_their_bound(lengths: list[list[int]], budget: int) -> None:
    groups = [train_group(f"g{i}", 3 + i, sizes) for i, sizes in enumerate(lengths)]
    rows = [row for group in groups for row in make_rows(group, len(groups), True, budget)]
    batches = pack_rows(rows, budget, True)
    for batch in batches:
        assert batch.input_ids.numel() <= budget or batch.input_ids.shape[0] == 1
        assert batch.sources.max() < batch.input_ids.numel()
    targets = sorted(token for batch in batches for token in batch.targets.tolist())
    assert targets == sorted(int(t) for g in groups for completion in g.payload.completions for t in completion)


def test_an_empty_microbatch_has_gradients_that_are_zero() -> None:
    policy = Policy(tiny_model(), 16, False)
    batch = empty_microbatch(share_prompt=True)
    logprobs, _ = policy(batch)
    (batch.weights * logprobs).sum().backward()
    gradients = [parameter.grad for parameter in policy.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 5))
def test_balance_is_a_partition_within_one_item_of_even(tokens: list[int], world_size: int) -> None:
    ranks = balance(tokens, world_size)
    assert sorted(i for rank in ranks for i in rank) == list(range(len(tokens)))
    loads = [sum(tokens[i] for i in rank) for rank in ranks]
    assert max(loads) - min(loads) <= max(tokens, default=0)
    assert ranks == balance(tokens, world_size)


@given(st.integers(0, 50), st.integers(1, 9))
def test_split_evenly_covers_everything_in_order(count: int, parts: int) -> None:
    ranges = split_evenly(count, parts)
    assert len(ranges) == parts and [i for part in ranges for i in part] == list(range(count))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_split_batch_leaves_out_groups_without_advantages() -> None:
    groups = [
        blended_group("a", [5, 5], [1.0, 0.0]),
        blended_group("b", [9, 9], [None, None]),
        blended_group("c", [4, 0], [None, 1.0]),
        blended_group("d", [3, 3], [None, 1.0]),
    ]
    plan = split_batch(groups, updates=2, world_size=2)
    assert [[[share.group_id for share in update] for update in rank] for rank in plan] == [[["a"], ["d"]], [[], []]]
    assert plan[0][0][0].payload == "payload of a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantages": [1.0]}, "2 completions"),
        ({"prompt": 0}, "no tokens"),
        ({"temperature": 0.0}, "temperature 0"),
        ({"advantages": [1.0, float("nan")]}, "finite"),
    ],
)
def test_a_group_that_cannot_be_trained_on_names_itself(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"group broken: .*{message}"):
        train_group(**({"name": "broken", "prompt": 3, "lengths": [2, 2]} | changes))

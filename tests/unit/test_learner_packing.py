"""Packing, weights and splits of the learner, and that packed rows say what a plain forward says."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForCausalLM

from actors.prompts.prompt import Prompt, Ticket
from actors.rewards.protocol import Verdict
from actors.rollout.group import header
from actors.rollout.sample import Sample
from learner.actor import as_samples
from learner.aggregations import SeqMeanTokenMean, Totals
from learner.batching.pack import check_group, count, empty_batch, pack
from learner.batching.packed import PackedBatch
from learner.batching.probe import random_share
from learner.batching.split import balance, split_batch, split_evenly, unique_tokens
from learner.model.policy import Policy
from moments_service.messages.table import GroupTable
from tests.made_samples import ScoredSamples, made_group, made_sample, trained_tokens

pytestmark = pytest.mark.unit
VOCABULARY = 97
NOTHING = float("nan")


def group_of(name: str, prompt: int, lengths: list[int], *more: object, **changes: object) -> ScoredSamples:
    return made_group(name, prompt, lengths, *more, vocabulary=VOCABULARY, **changes)  # type: ignore[arg-type]


def packed(groups: list[ScoredSamples], share_prompt: bool = True, budget: int = 8192) -> list[PackedBatch]:
    return pack(groups, SeqMeanTokenMean(), count(groups), 3, share_prompt, budget)


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


def plain_logprobs(model: Qwen3ForCausalLM, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs and entropies of one sample's trained tokens, by a forward of its own and softmax in float64 numpy."""
    ids = torch.from_numpy(sample.token_ids.astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].double().numpy() / sample.temperature
    at = np.flatnonzero(sample.loss_mask)
    logits = logits[at - 1]
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs[np.arange(len(at)), sample.token_ids[at]], -(np.exp(logs) * logs).sum(axis=1)


def several_turns(name: str) -> ScoredSamples:
    """Two samples in which an environment answers, one of which ends with what it said."""
    rng = np.random.default_rng(7)
    prompt, asked, said = rng.integers(0, VOCABULARY, 4), rng.integers(0, VOCABULARY, 3), rng.integers(0, VOCABULARY, 5)
    first = [(False, prompt), (True, asked), (False, said), (True, said[:2])]
    second = [(False, prompt), (True, said), (False, asked), (True, asked), (False, said)]
    return tuple(made_sample(name, i, parts, rng) for i, parts in enumerate((first, second))), np.array([1.0, -1.0])


@pytest.mark.parametrize("share_prompt", [True, False])
@pytest.mark.parametrize("budget", [8192, 24])
def test_packed_rows_give_the_logprobs_of_a_plain_forward(share_prompt: bool, budget: int) -> None:
    policy = Policy(tiny_model(), share_prompt, entropy_grad=False, logit_elements=7 * 8)
    groups = [
        group_of("a", 5, [3, 1, 6, 2]),
        group_of("b", 9, [4, 4], temperature=0.7),
        group_of("c", 1, [8, 1, 5], [0.5, NOTHING, -1.0]),
        several_turns("d"),
    ]
    found = {}
    for batch in packed(groups, share_prompt, budget):
        with torch.no_grad():
            logprobs, entropies = policy(batch)
        # The rollout log-probs are random numbers here, so each one identifies its token.
        keys = batch.rollout_logprobs.tolist()
        found |= dict(zip(keys, zip(logprobs.tolist(), entropies.tolist(), strict=True), strict=True))
        assert bool(batch.mask.all()) and batch.lag.tolist() == [3] * len(keys)
    expected = 0
    for samples, advantages in groups:
        for sample, advantage in zip(samples, advantages, strict=True):
            if np.isnan(advantage):
                continue
            logprobs, entropies = plain_logprobs(tiny_model(), sample)
            keys = sample.logprobs[sample.loss_mask].tolist()
            for key, logprob, entropy in zip(keys, logprobs, entropies, strict=True):
                assert found[key] == pytest.approx((logprob, entropy), abs=1e-5)
                expected += 1
    assert expected == len(found) == 3 + 1 + 6 + 2 + 8 + 8 + 5 + 5 + 8


@pytest.mark.parametrize("share_prompt", [True, False])
def test_weights_are_the_mean_over_tokens_then_samples_then_groups(share_prompt: bool) -> None:
    groups = [
        group_of("a", 4, [3, 5], [1.0, 2.0]),
        group_of("b", 6, [2, 7, 4], [1.0, NOTHING, -1.0]),
        several_turns("c"),
    ]
    batches = packed(groups, share_prompt, 100)
    weighted = sum(float((batch.weights.double() * batch.rollout_logprobs.double() ** 2).sum()) for batch in batches)
    squares = [
        np.mean(
            [np.mean(np.square(s.logprobs[s.loss_mask], dtype=np.float64)) for s, a in zip(*g, strict=True) if a == a]
        )
        for g in groups
    ]
    assert weighted == pytest.approx(np.mean(squares), rel=1e-6)
    assert sum(float(batch.weights.double().sum()) for batch in batches) == pytest.approx(1.0, rel=1e-6)


def test_totals_of_other_ranks_count_in_the_weights() -> None:
    weights = SeqMeanTokenMean()(np.array([5, 5, 8, 9]), np.array([1, 1, 1, 4]), Totals(groups=10, samples=0, tokens=0))
    np.testing.assert_allclose(weights, np.array([1 / 4, 1 / 4, 1 / 2, 1]) / 10, rtol=1e-15)


def test_advantages_and_numbers_follow_their_samples() -> None:
    samples, advantages = group_of("a", 3, [2, 3, 1], [0.5, NOTHING, -2.0])
    (batch,) = packed([(samples, advantages), group_of("b", 3, [1], [1.0])])
    assert batch.advantages.tolist() == [0.5, 0.5, -2.0, 1.0]
    assert batch.sample.tolist() == [0, 0, 1, 2] and batch.group.tolist() == [0, 0, 0, 1]
    assert (batch.samples, batch.groups) == (3, 2)
    assert batch.targets.tolist()[:3] == trained_tokens(samples[0]) + trained_tokens(samples[2])


def test_a_group_longer_than_a_microbatch_repeats_its_prompt() -> None:
    batches = packed([group_of("a", 10, [5, 5, 5, 30])], budget=18)
    assert sorted(len(batch.input_ids) for batch in batches) == [14, 18, 39]
    assert sum(float(batch.weights.sum()) for batch in batches) == pytest.approx(1.0)


def test_samples_with_different_prompts_share_what_they_have_in_common() -> None:
    rng = np.random.default_rng(0)
    samples = tuple(
        made_sample("a", i, [(False, prompt), (True, [1, 2])], rng)
        for i, prompt in enumerate(([5, 6, 7], [5, 6, 8, 9]))
    )
    (batch,) = packed([(samples, np.ones(2))])
    assert batch.input_ids.tolist() == [5, 6, 7, 1, 8, 9, 1]
    assert batch.positions.tolist() == [0, 1, 2, 3, 2, 3, 4]
    strangers = tuple(made_sample("b", i, [(False, [i]), (True, [1])], rng) for i in range(2))
    (batch,) = packed([(strangers, np.ones(2))])
    assert batch.segments.parents.tolist() == [-1, -1]


def test_nothing_to_train_on_makes_no_batches() -> None:
    rng = np.random.default_rng(0)
    silent = made_sample("a", 1, [(False, [1, 2])], rng)
    (samples, _) = group_of("a", 3, [2])
    assert packed([((samples[0], silent), np.array([NOTHING, 1.0]))]) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=8), st.integers(8, 64))
def test_microbatches_keep_every_token_once_and_their_bound(lengths: list[list[int]], budget: int) -> None:
    groups = [group_of(f"g{i}", 3 + i, sizes) for i, sizes in enumerate(lengths)]
    batches = packed(groups, True, budget)
    for batch in batches:
        assert len(batch.input_ids) <= budget or batch.samples == 1
        assert batch.sources.max() < len(batch.input_ids) == len(batch.positions) == batch.segments.starts[-1]
    targets = sorted(token for batch in batches for token in batch.targets.tolist())
    assert targets == sorted(token for samples, _ in groups for sample in samples for token in trained_tokens(sample))


def test_an_empty_microbatch_has_gradients_that_are_zero() -> None:
    policy = Policy(tiny_model(), share_prompt=True, entropy_grad=False)
    batch = empty_batch()
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


def columns(
    lengths: list[list[int]],
    advantages: list[list[float]],
    rewards: list[list[float]],
    prompts: list[int] | None = None,
    read: list[list[int]] | None = None,
) -> SimpleNamespace:
    """What `split_batch` reads of a batch."""
    table = SimpleNamespace(
        lengths=np.array(lengths),
        rewards=np.array(rewards, dtype=float),
        prompt_tokens=np.array(prompts or [0] * len(lengths)),
        read=np.array(read or np.zeros_like(lengths)),
    )
    ids = tuple("abcdefgh"[: len(lengths)])
    return SimpleNamespace(table=table, advantages=np.array(advantages, dtype=float), group_ids=ids)


def test_split_batch_leaves_out_groups_without_advantages() -> None:
    lengths = [[5, 5], [9, 9], [4, 0], [3, 3]]
    advantages = [[1.0, 0.0], [NOTHING, NOTHING], [NOTHING, 1.0], [NOTHING, 1.0]]
    plan = split_batch(columns(lengths, advantages, advantages), updates=2, world_size=2)  # type: ignore[arg-type]
    assert plan == [[[0], [3]], [[], []]]


def test_ranks_are_given_like_numbers_of_unique_tokens() -> None:
    """One group with a very long prompt and short answers has a rank for itself; by sampled tokens it would share one."""
    lengths, ones = [[10, 10], [40, 40], [30, 30], [20, 20]], [[1.0, 0.0]] * 4
    batch = columns(lengths, ones, ones, prompts=[500, 10, 10, 10])
    assert split_batch(batch, updates=1, world_size=2) == [[[0]], [[1, 2, 3]]]  # type: ignore[arg-type]
    without = columns(lengths, ones, ones)
    assert split_batch(without, updates=1, world_size=2) == [[[0, 1]], [[2, 3]]]  # type: ignore[arg-type]


def test_a_group_costs_its_prompt_and_what_follows_it_of_completions_that_are_trained_on() -> None:
    advantages = [[1.0, 0.0, NOTHING], [NOTHING, NOTHING, NOTHING]]
    batch = columns([[5, 7, 9], [4, 4, 4]], advantages, advantages, prompts=[100, 50], read=[[1, 0, 3], [0, 0, 0]])
    assert unique_tokens(batch, share_prompt=True).tolist() == [113, 0]  # type: ignore[arg-type]
    assert unique_tokens(batch, share_prompt=False).tolist() == [213, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("share_prompt", [True, False])
def test_what_a_header_says_a_group_costs_is_what_its_rows_hold(share_prompt: bool) -> None:
    """Up to the last token of each sample, which predicts nothing; completions that differ from their first token on."""
    samples, advantages = made_group("a", 9, [3, 5, 2], seed=3)
    samples = tuple(_beginning(sample, 9, 100 + i) for i, sample in enumerate(samples))
    ticket = Ticket("a", Prompt("a", "s", "text", None, "exact"), 3, 0)
    table = GroupTable.of([header(ticket, samples, [Verdict(reward) for reward in (1.0, 0.0, 0.5)], 0)])
    batch = SimpleNamespace(table=table, advantages=advantages[None])
    (cost,) = unique_tokens(batch, share_prompt).tolist()  # type: ignore[arg-type]
    rows = pack([(samples, advantages)], SeqMeanTokenMean(), count([(samples, advantages)]), 0, share_prompt, 10_000)
    assert cost == sum(len(row.input_ids) for row in rows) + len(samples)


def _beginning(sample: Sample, at: int, token: int) -> Sample:
    ids = sample.token_ids.copy()
    ids[at] = token
    return replace(sample, token_ids=ids)


def test_a_reward_without_an_advantage_names_its_group() -> None:
    batch = columns([[1, 1], [1, 1]], [[1.0, 1.0], [1.0, NOTHING]], [[1.0, 1.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="group b: a reward has no advantage"):
        split_batch(batch, updates=1, world_size=1)  # type: ignore[arg-type]


def test_a_payload_that_holds_no_samples_is_refused() -> None:
    samples, _ = group_of("a", 2, [1, 2])
    assert as_samples("a", samples) == samples
    with pytest.raises(TypeError, match="group a is a dict"):
        as_samples("a", {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantages": [1.0]}, "2 samples and 1 advantages"),
        ({"temperature": 0.0}, "temperature 0"),
        ({"advantages": [1.0, float("inf")]}, "finite"),
    ],
)
def test_a_group_that_cannot_be_trained_on_names_itself(changes: dict, message: str) -> None:
    group = made_group(**({"name": "broken", "prompt": 3, "lengths": [2, 2]} | changes))
    with pytest.raises(ValueError, match=f"group broken: .*{message}"):
        check_group(*group)


def test_the_share_that_a_move_is_measured_on_is_drawn_at_random() -> None:
    """Not the longest rows: of six groups, three of them long, each stands for the batch as often as any other."""
    groups = [made_group(str(i), 3, [2, 2] if i % 2 else [9, 9], seed=i) for i in range(6)]
    long = 0
    for seed in range(600):
        share = random_share(groups, 6, SeqMeanTokenMean(), 0, True, 64, seed)
        assert share is not None and int(share.mask.sum()) in (4, 18)
        long += int(share.mask.sum()) == 18
    assert abs(long / 600 - 0.5) < 0.1
    assert random_share([], 1, SeqMeanTokenMean(), 0, True, 64, 0) is None

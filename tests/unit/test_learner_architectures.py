"""Every architecture that loads: its weights are its file's, its log-probs its own forward's; or it is refused with the reason."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM, PretrainedConfig

from learner.aggregations import SeqMeanTokenMean
from learner.batching.pack import count, pack
from learner.config import LearnerConfig
from learner.export import full_tensors
from learner.job import LearnerJob
from learner.model import load
from learner.model.check import check_logprobs, why_padded
from learner.model.load import load_policy
from learner.model.logits import LogitTransform
from learner.model.recurrence import PathRows
from learner.rank import LearnerRank
from tests.made_hybrids import HYBRIDS, made_hybrid
from tests.made_samples import made_group

pytestmark = pytest.mark.unit
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EIGHT = SMALL | {"head_dim": 8}
MADE: dict[str, Callable[[], PretrainedConfig]] = {
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**EIGHT),
    "llama": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "mistral": lambda: transformers.MistralConfig(**SMALL, sliding_window=64),
    "phi3": lambda: transformers.Phi3Config(**SMALL, sliding_window=64),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "falcon": lambda: transformers.FalconConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=1, eos_token_id=2
    ),
    "llama4": lambda: transformers.Llama4TextConfig(
        **EIGHT, num_local_experts=2, intermediate_size_mlp=64, attention_chunk_size=64
    ),
    "gemma2": lambda: transformers.Gemma2Config(**EIGHT, sliding_window=64, final_logit_softcapping=1.0),
    "granite": lambda: transformers.GraniteConfig(**SMALL, logits_scaling=8.0),
    "cohere": lambda: transformers.CohereConfig(**SMALL, logit_scale=0.3),
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, num_local_experts=4),
    "recurrent_gemma": lambda: transformers.RecurrentGemmaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        lru_width=32,
        attention_window_size=64,
        logits_soft_cap=0.5,
    ),
}
MADE |= {name: partial(made_hybrid, name, max_position_embeddings=64) for name in HYBRIDS}
PADDED = {"recurrent_gemma", "falcon"}


def made_policy(directory: Path, name: str) -> str:
    """A tiny model with weights large enough that a wrong logit is seen."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MADE[name]())
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(8)
    model.save_pretrained(directory)
    return str(directory)


@contextmanager
def one_rank(path: str, share_prompt: bool) -> Iterator[LearnerRank]:
    rank = LearnerRank(LearnerConfig(share_prompt=share_prompt), LearnerJob(path, 10), 0, 1)
    try:
        rank.setup("127.0.0.1", 0, 60.0)
        yield rank
    finally:
        rank.close()


@pytest.mark.parametrize("name", MADE)
def test_an_architecture_is_loaded_by_shard_as_from_pretrained_loads_it_and_trains(name: str, tmp_path: Path) -> None:
    path = made_policy(tmp_path, name)
    expected = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with one_rank(path, share_prompt=True) as rank:
        assert rank.policy.padded == (name in PADDED)
        model = rank.policy.model
        found = dict(full_tensors(rank.policy, torch.float32))
        saved = load_file(f"{path}/model.safetensors")
        assert set(found) <= set(saved) and all(torch.equal(saved[key], value) for key, value in found.items())
        for key, buffer in expected.named_buffers():
            assert torch.equal(model.get_buffer(key), buffer), key
        assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
        metrics = rank.step([[made_group("a", 4, [3, 2])]], 0)
        assert metrics["updates"] == 1.0 and np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0


@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere", "recurrent_gemma", "falcon_h1"])
def test_a_logit_transform_that_nobody_knows_is_found_at_the_start(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made_policy(tmp_path, name)
    with one_rank(path, share_prompt=False) as rank:
        assert rank.policy.transform is not None
        rank.policy.transform = None
        with pytest.raises(ValueError, match=r"log-probs of a \w+ForCausalLM are .* nats off"):
            check_logprobs(rank.policy, "float32", 64, torch.device("cpu"))


@pytest.mark.parametrize("name", ["qwen3_next", "bamba"])
def test_a_layer_with_a_state_is_recomputed_along_the_same_paths(name: str, tmp_path: Path) -> None:
    """In the backward pass of each microbatch, of which there are several."""
    path = made_policy(tmp_path, name)
    groups = [made_group(str(i), 4, [3, 9, 5], seed=i) for i in range(3)]
    found = []
    for checkpointing in ("none", "layer", "selective"):
        config = LearnerConfig(microbatch_tokens=24, memory={"activation_checkpointing": checkpointing})
        rank = LearnerRank(config, LearnerJob(path, 10), 0, 1)
        try:
            rank.setup("127.0.0.1", 0, 60.0)
            assert rank.policy.share_prompt and not rank.policy.padded
            found.append(rank.step([groups], 0))
        finally:
            rank.close()
    assert found[0]["microbatches"] >= 3
    for recomputed in found[1:]:
        assert recomputed["grad_norm"] == pytest.approx(found[0]["grad_norm"], rel=1e-6)


def test_paths_are_run_beside_others_of_like_length() -> None:
    """What is run for nobody is at most an eighth of any row, and every token stands where its path has it."""
    groups = [made_group(str(i), 6, [2, 2, 30, 31, 29, 7, 8], seed=i) for i in range(2)]
    (batch,) = pack(groups, SeqMeanTokenMean(), count(groups), 0, True, 1000)
    found = PathRows.of(batch.segments, torch.device("cpu"))
    assert len(found.rows) == 3
    tokens = torch.cat([rows.flatten() for rows in found.rows])
    assert tokens[found.places].tolist() == list(range(len(batch.input_ids)))
    lengths = [batch.positions[rows[:, -1]] + 1 for rows in found.rows]
    for rows, own in zip(found.rows, lengths, strict=True):
        assert (own >= 0.875 * rows.shape[1]).all()
        at = torch.minimum(torch.arange(rows.shape[1]), own[:, None] - 1)
        assert torch.equal(batch.positions[rows], at)


def test_chunks_that_hold_the_longest_sample_are_full_attention() -> None:
    llama = load.meta_model(MADE["llama4"]())
    assert why_padded(llama, longest_sample=64) is None
    assert "chunks of 64 tokens, and samples may have 65" in str(why_padded(llama, longest_sample=65))


def load_one_of_two(path: str, store: str, rank: int) -> tuple[int, int, dict[str, np.ndarray]]:
    """In a process of its own: bytes of the largest tensor read, of all of them, and the policy gathered again."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    largest, total = 0, 0
    own_part = load._own_part

    def counted(parameter: Any, read: Any, device: torch.device) -> Any:
        def seen(part: tuple[slice, ...]) -> torch.Tensor:
            nonlocal largest, total
            tensor = read(part)
            largest, total = max(largest, tensor.numel()), total + tensor.numel()
            return tensor

        return own_part(parameter, seen, device)

    load._own_part = counted
    policy = load_policy(path, LearnerConfig(world_size=2), init_device_mesh("cpu", (2,)), ".*")
    check_logprobs(policy, "float32", 64, torch.device("cpu"))
    found = [(name, tensor.numpy()) for name, tensor in full_tensors(policy, torch.float32)] if rank == 0 else []
    if rank:
        assert not list(full_tensors(policy, torch.float32))
    dist.destroy_process_group()
    return largest, total, dict(found)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_rank_of_two_reads_half_of_every_tensor(name: str, tmp_path: Path) -> None:
    """It held the whole policy in float32 before it was sharded. Both policies have tied heads."""
    path = made_policy(tmp_path / "policy", name)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as ranks:
        calls = [ranks.submit(load_one_of_two, path, str(tmp_path / "store"), rank) for rank in range(2)]
        (largest, total, found), (_, other_total, _) = (call.result(timeout=120) for call in calls)
    expected = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    sizes = [parameter.numel() for parameter in expected.parameters()]
    assert total + other_total == sum(sizes), "every weight is read once, by one rank"
    assert largest <= -(-max(sizes) // 2) and total <= 0.6 * sum(sizes)
    assert all(np.array_equal(expected.state_dict()[key].numpy(), value) for key, value in found.items())
    assert LogitTransform.of(expected.config) is None


def test_sharded_experts_are_gathered_under_their_names_in_files(tmp_path: Path) -> None:
    path = made_policy(tmp_path / "policy", "mixtral")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as ranks:
        calls = [ranks.submit(load_one_of_two, path, str(tmp_path / "store"), rank) for rank in range(2)]
        (_, _, found), _ = (call.result(timeout=120) for call in calls)
    saved = load_file(f"{path}/model.safetensors")
    assert found.keys() == saved.keys()
    assert all(np.array_equal(saved[key].numpy(), value) for key, value in found.items())

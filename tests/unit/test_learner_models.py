"""Other people's architectures: each trains with its own log-probs, or is refused with what is in the way."""

import multiprocessing
import subprocess
import sys
from multiprocessing.queues import Queue
from pathlib import Path

import pytest
import torch
import transformers
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from learner.config import LearnerConfig
from learner.job import LearnerJob
from learner.model import policy as policy_module
from learner.model.check import check_architecture
from learner.rank import LearnerRank
from tests.unit.test_learner_rank import config_with, draw_groups, running_rank, weights_of

pytestmark = pytest.mark.unit

COMMON = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, object]] = {
    "GPT2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2},
    "Falcon": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2},
    "Qwen2": COMMON,
    "Qwen3": COMMON | {"head_dim": 8},
    "Llama": COMMON,
    "Mistral": COMMON | {"sliding_window": 48},
    "Phi3": COMMON | {"sliding_window": 48},
    "Gemma2": COMMON | {"head_dim": 8, "sliding_window": 48, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "Granite": COMMON | {"logits_scaling": 4.0},
    "Cohere": COMMON | {"logit_scale": 0.25},
    "Llama4Text": COMMON | {"head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2, "attention_chunk_size": 64},
}  # fmt: skip
NOT_SHARING = {
    "RecurrentGemma": COMMON | {
        "head_dim": 8, "lru_width": 32, "attention_window_size": 48, "logits_soft_cap": 2.0, "num_hidden_layers": 3,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
}  # fmt: skip
"""Whose layers carry a state along the sequence."""


def saved(architecture: str, settings: dict[str, object], directory: Path) -> str:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{architecture}Config")(**settings))
    with torch.no_grad():
        for parameter in model.parameters():  # the usual start is so small that a wrong logit hardly shows
            parameter.mul_(5.0)
    model.save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_trains_and_gives_its_own_weights_back(architecture: str, tmp_path: Path) -> None:
    """The check at the start compares its log-probs, packed and shared, with the model's own forward."""
    path = saved(architecture, ARCHITECTURES[architecture], tmp_path)
    with running_rank(path, config_with(), longest_sample=32) as rank:
        loaded = weights_of(rank)
        metrics = rank.step([draw_groups(0)], 0)
        trained = weights_of(rank)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.items())
    assert metrics["grad_norm"] > 0 and any(not torch.equal(trained[name], loaded[name]) for name in loaded)


@pytest.mark.parametrize("architecture", NOT_SHARING)
def test_layers_that_carry_a_state_share_no_prompt_and_train_without_that(architecture: str, tmp_path: Path) -> None:
    path = saved(architecture, NOT_SHARING[architecture], tmp_path)
    with (
        pytest.raises(ValueError, match=r"learner\.share_prompt"),
        running_rank(path, config_with(), longest_sample=32),
    ):
        pass
    with running_rank(path, config_with(share_prompt=False), longest_sample=32) as rank:
        assert rank.step([draw_groups(0)], 0)["grad_norm"] > 0


@pytest.mark.parametrize("architecture", ["Gemma2", "Granite", "Cohere"])
def test_a_logit_transform_that_is_not_known_is_found_before_anything_is_trained(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(architecture, ARCHITECTURES[architecture], tmp_path)
    monkeypatch.setattr(policy_module.LogitTransform, "of", staticmethod(lambda config: None))
    with (
        pytest.raises(ValueError, match=rf"log-probs of a {architecture}ForCausalLM are .* nats off"),
        running_rank(path, config_with(), longest_sample=32),
    ):
        pass


@pytest.mark.parametrize(("longest", "refused"), [(48, False), (49, True), (None, True)])
def test_a_window_that_holds_the_longest_sample_is_full_attention(longest: int | None, refused: bool) -> None:
    config = transformers.MistralConfig(**ARCHITECTURES["Mistral"])
    if not refused:
        check_architecture(config, share_prompt=True, longest_sample=longest)
        return
    with pytest.raises(ValueError, match=r"within a window of 48 tokens \(sliding_window\), and samples may have"):
        check_architecture(config, share_prompt=True, longest_sample=longest)
    check_architecture(config, share_prompt=False, longest_sample=longest)


def load_as_one_of_two(path: str, rank: int, ports: "Queue[int]", found: "Queue[tuple[int, int, int]]") -> None:
    """Say how many elements this rank read out of the files, how many it holds, and how many there are."""
    from learner.model import load

    read = 0
    own_part = load._own_part

    def counted(parameter, part_of, device):  # type: ignore[no-untyped-def]
        def part(slices):  # type: ignore[no-untyped-def]
            nonlocal read
            tensor = part_of(slices)
            read += tensor.numel()
            return tensor

        return own_part(parameter, part, device)

    load._own_part = counted
    learner = LearnerRank(LearnerConfig(world_size=2), LearnerJob(path, 1), rank, world_size=2)
    if rank == 0:
        ports.put(learner.listen("127.0.0.1", 60.0))
        learner.setup("127.0.0.1", 0, timeout_s=60.0)
    else:
        learner.setup("127.0.0.1", ports.get(timeout=60.0), timeout_s=60.0)
    parameters = [parameter for parameter in learner.policy.parameters() if isinstance(parameter, DTensor)]
    held = sum(parameter.to_local().numel() for parameter in parameters)
    found.put((read, held, sum(parameter.numel() for parameter in parameters)))
    learner.close()


def test_of_two_ranks_each_reads_and_holds_its_half_of_the_policy(tmp_path: Path) -> None:
    path = saved("Qwen3", ARCHITECTURES["Qwen3"], tmp_path)
    context = multiprocessing.get_context("spawn")
    ports, found = context.Queue(), context.Queue()
    ranks = [context.Process(target=load_as_one_of_two, args=(path, rank, ports, found)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    halves = [found.get(timeout=120.0) for _ in ranks]
    for process in ranks:
        process.join(60.0)
    for read, held, whole in halves:
        assert read == held and held <= 0.6 * whole
    assert sum(held for _, held, _ in halves) == halves[0][2]


def test_the_learner_needs_neither_ray_nor_vllm_below_its_shell() -> None:
    code = "import sys, learner.rank, learner.losses; print(sorted({'ray', 'vllm'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert LearnerConfig().loss.kind == "ppo_clip"

"""Tiny random policies of architectures whose files name tensors otherwise than memory does, and of two that do not."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

# Heads of 32, the smallest that vLLM has on CPU.
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
MADE: dict[str, PretrainedConfig] = {
    "qwen2_moe": transformers.Qwen2MoeConfig(**GROUPED, **EXPERTS, num_experts=4, shared_expert_intermediate_size=32),
    "qwen3_moe": transformers.Qwen3MoeConfig(**GROUPED, **EXPERTS, num_experts=4, head_dim=32),
    "mixtral": transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "olmoe": transformers.OlmoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2),
    "deepseek_v3": transformers.DeepseekV3Config(
        **GROUPED,
        **EXPERTS,
        **LATENT,
        n_routed_experts=4,
        n_shared_experts=1,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        topk_method="noaux_tc",  # as in the published config.json; by it vLLM makes the router's bias
    ),
    "gpt_neox": transformers.GPTNeoXConfig(**SMALL),
    "qwen3": transformers.Qwen3Config(**GROUPED, head_dim=32),
    "llama": transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True),
}
DENSE = {"qwen3", "llama"}
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
"""Qwen3 as small as tests of the learner want it."""


def write_tiny(directory: Path, **changes: Any) -> str:
    """A policy's files; always the same weights."""
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**TINY | changes)).save_pretrained(directory)
    return str(directory)


def made(config: PretrainedConfig, seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()

"""Tiny configs of architectures whose layers attend, or carry a state from token to token."""

from typing import Any

import transformers
from transformers import PretrainedConfig

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
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
    "mamba_n_groups": 1,
}
DELTA: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
CONVOLUTION: dict[str, Any] = {"layer_types": ["conv", "full_attention"]}

HYBRIDS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "qwen3_next": (transformers.Qwen3NextConfig, DELTA | EXPERTS | {"head_dim": 8, "shared_expert_intermediate_size": 16}),
    "qwen3_5": (transformers.Qwen3_5TextConfig, DELTA | {"head_dim": 8}),
    "olmo_hybrid": (transformers.OlmoHybridConfig, DELTA | {"linear_num_key_heads": 4}),
    "lfm2": (transformers.Lfm2Config, CONVOLUTION),
    "lfm2_moe": (transformers.Lfm2MoeConfig, CONVOLUTION | EXPERTS | {"num_dense_layers": 1}),
    "bamba": (transformers.BambaConfig, MAMBA | {"attn_layer_indices": [1]}),
    "granitemoehybrid": (
        transformers.GraniteMoeHybridConfig,
        MAMBA | {"layer_types": ["mamba", "attention"], "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 16},
    ),
    "jamba": (
        transformers.JambaConfig,
        {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False},
    ),
    "nemotron_h": (
        transformers.NemotronHConfig,
        {
            "num_hidden_layers": None,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "head_dim": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 16,
        },
    ),
    "zamba2": (
        transformers.Zamba2Config,
        {"layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1], "mamba_d_state": 8, "n_mamba_heads": 8, "mamba_ngroups": 1},
    ),
    "falcon_h1": (
        transformers.FalconH1Config,
        MAMBA | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "lm_head_multiplier": 0.5},
    ),
}  # fmt: skip


def made_hybrid(name: str, **changes: Any) -> PretrainedConfig:
    """The config of that name, with these entries in place of its own."""
    kind, own = HYBRIDS[name]
    return kind(**{key: value for key, value in (SMALL | own | changes).items() if value is not None})

"""Which layers of a policy vLLM can adapt, asked of its model without any values: seconds of imports, and no engine."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed.parallel_state import (
    destroy_distributed_environment,
    destroy_model_parallel,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.lora.utils import _all_lora_classes, process_packed_modules_mapping
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models import supports_lora

from actors.config import RolloutConfig
from actors.engines.adapter_plan import AdapterPlan
from actors.engines.adapters import adapted_layers
from actors.engines.vllm import engine_args
from actors.engines.vllm_adapters import not_among, refuse_unadapted


def refuse_unadaptable(rollout: RolloutConfig, policy: str, plan: AdapterPlan) -> None:
    """Raise ValueError for layers, or an architecture, that vLLM cannot adapt. For a process that has no vLLM engine in it.

    policy: directory or hub id; its weights are not read.
    """
    vllm_config = engine_args(rollout, policy, 0, plan).create_engine_config()
    with tempfile.TemporaryDirectory() as meeting, set_current_vllm_config(vllm_config):
        # vLLM's layers ask which part of them is theirs.
        init_distributed_environment(1, 0, (Path(meeting) / "store").as_uri(), 0, "gloo")
        try:
            initialize_model_parallel()
            with torch.device("meta"):
                model = initialize_model(vllm_config)
        finally:
            destroy_model_parallel()
            destroy_distributed_environment()
    if not supports_lora(model):
        raise ValueError(
            f"learner.adapter.publish: vLLM puts no adapter on a {type(model).__name__}, which {policy} is; publish merged"
        )
    taken = _adaptable(model, vllm_config.lora_config)
    refuse_unadapted(policy, not_among(taken, model, adapted_layers(policy, plan)))


def _adaptable(model: Any, lora_config: Any) -> set[str]:
    """Linear layers that vLLM will adapt, those that it joins into one by the names that they have in a policy.

    As its LoRAModelManager chooses them, which cannot be made of experts without values.
    """
    joined = process_packed_modules_mapping(model)
    taken: set[str] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        above, _, last = name.rpartition(".")
        parts = joined.get(last, [])
        said = {"source_layer": module, "lora_config": lora_config, "packed_modules_list": parts}
        if isinstance(module, LinearBase) and any(
            kind.can_replace_layer(**said, model_config=model.config) for kind in _all_lora_classes
        ):
            taken.update(f"{above}.{part}" for part in parts or [last])
    return taken

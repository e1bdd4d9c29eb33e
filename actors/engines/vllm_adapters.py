"""vLLM's side of adapters: the worker keeps each version under its number as a LoRA, read from memory and never from a directory."""

from collections.abc import Sequence, Set
from typing import Any

import numpy as np
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest

from actors.engines.adapter_plan import LARGEST_RANK
from actors.weights.block import open_tensors
from actors.weights.offer import TensorEntry

SLOTS = 2
"""Versions that are sampled with at once: the newest, and the one before it for as long as its requests run."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, LARGEST_RANK)
"""Those that vLLM makes room for."""


def lora_request(version: int) -> LoRARequest | None:
    """What a request of that version carries; version 0 is the policy itself. vLLM's prefix cache tells requests apart by it."""
    # The path is never read: the worker holds the version before any request names it.
    return LoRARequest(f"version {version}", version, "held-by-the-worker") if version else None


def room_for(rank: int) -> int:
    """The smallest of vLLM's ranks that holds an adapter's. Raises ValueError where none does."""
    for room in _RANKS:
        if rank <= room:
            return room
    raise ValueError(f"learner.adapter.rank: vLLM takes adapters up to rank {LARGEST_RANK}, not {rank}")


class AdapterHolder:
    """Methods of vLLM's worker, called by name through `collective_rpc` between two of its steps."""

    model_runner: Any

    def unadaptable(self, layers: list[str]) -> list[str]:
        """Those of a policy's layers that vLLM cannot put an adapter on."""
        manager = self.model_runner.lora_manager._adapter_manager
        taken = {name for parts in manager.packed_modules.values() for name in parts}
        taken |= manager.modules.keys() - manager.packed_modules.keys()
        return not_among(taken, manager.model, layers)

    def take_adapter(self, version: int, path: str, size: int, tensors: list[dict[str, Any]], keep: list[int]) -> None:
        """Hold an adapter beside the versions in `keep`; all others are dropped. Nothing of the file is used afterwards.

        path: file that begins with the adapter's block of `size` bytes.    tensors: fields of a `TensorEntry` each.
        """
        worker = self.model_runner.lora_manager
        manager = worker._adapter_manager
        manifest = [TensorEntry(**(entry | {"shape": tuple(entry["shape"])})) for entry in tensors]
        block = np.memmap(path, dtype=np.uint8, mode="r", shape=(size,))
        # Clones, since vLLM keeps what it is given, and these bytes will be another version's.
        given = {name: tensor.clone() for name, tensor in open_tensors(manifest, block).items()}
        rank = manifest[0].shape[0]
        lora = LoRAModel.from_lora_tensors(
            version,
            given,
            PEFTHelper(r=rank, lora_alpha=rank, target_modules=[]),  # every scale is in B
            device="cpu",
            dtype=worker.lora_config.lora_dtype,
            weights_mapper=_mapper(manager.model),
        )
        for old in worker.list_adapters() - set(keep):
            manager.remove_adapter(old)
        if not manager.add_adapter(lora) or not manager.activate_adapter(version):
            raise ValueError(f"vLLM holds an adapter of version {version} already")


def not_among(taken: Set[str], model: Any, layers: Sequence[str]) -> list[str]:
    """Those of a policy's layers that are not `taken`, which are named as in vLLM's model of it."""
    mapper = _mapper(model)
    names = {layer: mapper._map_name(layer) if mapper is not None else layer for layer in layers}
    return [layer for layer, name in names.items() if name not in taken]


def refuse_unadapted(policy: str, layers: Sequence[str]) -> None:
    """Raise ValueError where there is any of `layers`, which vLLM cannot adapt."""
    if layers:
        raise ValueError(
            f"learner.adapter.publish: vLLM cannot put an adapter on {len(layers)} layers of {policy} ({', '.join(layers[:3])}); "
            "leave them out of learner.adapter.targets, or publish merged"
        )


def _mapper(model: Any) -> Any:
    """From the names of a policy's files to vLLM's, where they differ."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return None if mapper is None else mapper.get_rename_mapper()

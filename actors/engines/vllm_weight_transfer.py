"""vLLM's side of a weight update: the worker reads the whole policy from a file, which lies in memory.

vLLM 0.32 ships transports for GPUs only; this one serves CPU and GPU workers alike. Updates are whole: vLLM reloads layer
by layer, and a layer that gets some of its tensors (say the q of a fused qkv) is left with garbage in the rest.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from vllm.distributed.weight_transfer import WeightTransferEngine
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.engines.allocator import keep_freed_memory
from actors.engines.policy_files import LM_HEAD
from actors.weights.block import open_tensors
from actors.weights.offer import TensorEntry

BACKEND = "bvblend_file"

_EMBEDDING_ENDINGS = (
    "embed_tokens.weight",
    "embed_in.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
)


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """A file needs no rendezvous."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """path: file that begins with every tensor of the policy in one block.    size: bytes of that block.
    tensors: fields of a `TensorEntry` each."""

    path: str
    size: int
    tensors: list[dict[str, Any]]


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Loads a whole policy from one file into the worker's model."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """On CPU, every update allocates each layer anew: keep what it frees, so that the next one finds its pages."""
        if self.device.type == "cpu":
            keep_freed_memory()

    def start_weight_update(self) -> None:
        """Put every layer into loading state; the model cannot run until `finish_weight_update`."""
        initialize_layerwise_reload(self.model)
        if self.device.type == "cpu":
            for layer in cast(Any, self.model).modules():
                method: Any = getattr(layer, "quant_method", None)
                if getattr(method, "moe_kernel", None) is not None:
                    # On CPU vLLM packs experts for their kernel only as it makes that kernel: it is made anew.
                    method.moe_kernel = None

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load the file. Overrides the base, whose synchronisation raises on CPU."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Raises ValueError if the file is not what was written; the model is then unusable."""
        size = Path(update_info.path).stat().st_size
        if size < update_info.size:
            raise ValueError(f"weight file has {size} bytes, {update_info.size} were written")
        manifest = [TensorEntry(**(entry | {"shape": tuple(entry["shape"])})) for entry in update_info.tensors]
        block = np.memmap(update_info.path, dtype=np.uint8, mode="r", shape=(update_info.size,))
        tensors = open_tensors(manifest, block)
        if self.model_config.hf_text_config.tie_word_embeddings and LM_HEAD not in tensors:
            # On CPU the head keeps its own packed copy of the embedding, which goes stale unless it is loaded too.
            tensors[LM_HEAD] = tensors[_embedding_name(list(tensors))]
        cast(Any, self.model).load_weights(tensors.items())

    def finish_weight_update(self) -> None:
        """Pack the loaded weights for the kernels, in the storage that compiled graphs refer to."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


def _embedding_name(names: list[str]) -> str:
    found = [name for name in names if name.endswith(_EMBEDDING_ENDINGS)]
    if len(found) != 1:
        raise ValueError(f"the policy ties its output head to its embedding, but {len(found)} tensors look like one")
    return found[0]

"""What a learner rank holds in memory, by arithmetic. Imports no torch: `bvblend plan` asks it before anything starts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner.adapters import LowRank
from learner.config import START, LearnerConfig

GPU_GIB = (16, 24, 40, 48, 80, 141, 192)
"""Sizes that GPUs come in."""
USABLE = 0.9
"""Share of a GPU that tensors may fill; the rest goes to CUDA, NCCL and gaps between tensors."""


@dataclass(frozen=True, slots=True)
class PolicyShape:
    """A dense decoder."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    queries: int
    """Width of all query heads."""
    keys: int
    """Width of all key heads."""
    vocabulary: int
    tied: bool

    @property
    def head(self) -> int:
        """Parameters outside the layers: embedding, and output head where it is another weight."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one rank at its peak."""

    weights: float
    """Float32 masters of its shard, and what is gathered for computing."""
    gradients: float
    beside: float
    """Values of the reference policy that differ from the policy's, and of its moving average, float32 shards."""
    optimizer: float
    """On the device; 0 where the state rests in host memory."""
    offloaded: float
    """Optimiser state in host memory."""
    activations: float
    head: float

    @property
    def device(self) -> float:
        return self.weights + self.gradients + self.beside + self.optimizer + self.activations + self.head


def policy_shape(directory: str, parameters: int) -> PolicyShape | None:
    """Shape of the policy in a Hugging Face directory; None where its config does not name one in the usual words."""
    file = Path(directory) / "config.json"
    if not file.is_file():
        return None
    whole: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    config = whole.get("text_config", whole)
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    if any(not isinstance(config.get(name), int) for name in names):
        return None
    layers, hidden, intermediate, heads, vocabulary = (config[name] for name in names)
    width = config.get("head_dim") or hidden // heads
    keys = width * (config.get("num_key_value_heads") or heads)
    tied = bool(whole.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
    return PolicyShape(parameters, layers, hidden, intermediate, width * heads, keys, vocabulary, tied)


def footprint(shape: PolicyShape, config: LearnerConfig, trained: int) -> Footprint:
    """Peak of a rank that trains so many parameters with Adam on full microbatches.

    Counted: float32 masters, gradients and two moments of what is trained, what a reference policy has otherwise, and a moving average, over the ranks; the gathered weights and
    gradients in the computing dtype (embedding and head, and two layers; on a single rank every layer stays gathered); what the backward pass keeps of a
    microbatch, and the gradients of one layer; the hidden states and one chunk of logits in the output head. Not counted: the
    runtime, and gaps.
    """
    memory, ranks = config.memory, config.world_size
    size = 2 if config.dtype == "bfloat16" else 4
    layer = max(shape.parameters - shape.head, 0) / shape.layers
    gathered = shape.parameters if ranks == 1 else shape.head + min(2, shape.layers) * layer
    state = 8 * trained / ranks
    share = min(1.0, trained / shape.parameters)
    tokens = config.microbatch_tokens
    kept = layer_activations(shape, memory.activation_checkpointing, size) * shape.layers
    whole = layer_activations(shape, "none", size)
    working = (
        whole if memory.activation_checkpointing == "none" else 2 * whole
    )  # gradients of one layer, and it made again
    elements = min(memory.logit_elements or (2**25 if config.gpus > 0 else 2**22), tokens * shape.vocabulary)
    return Footprint(
        weights=4 * shape.parameters / ranks + size * gathered,
        gradients=4 * trained / ranks + share * size * (shape.head + layer),
        beside=4 * _beside(shape, config, trained) / ranks,
        optimizer=0 if memory.offload_optimizer and config.gpus > 0 else state,
        offloaded=state if memory.offload_optimizer and config.gpus > 0 else 0,
        activations=tokens * (kept + working),
        head=tokens * shape.hidden * (size + 4) + 3 * 4 * elements,
    )


def _beside(shape: PolicyShape, config: LearnerConfig, trained: int) -> int:
    """Parameters that are held again, for the reference policy and for a moving average."""
    kl = config.kl
    average = 0 if config.average is None else trained
    if not config.compares:
        return average
    if kl.reference != START:
        return shape.parameters + average
    free = isinstance(config.adapter, LowRank) and kl.refresh_every is None
    return average + (0 if free else trained)


def layer_activations(shape: PolicyShape, checkpointing: str, size: int) -> float:
    """Bytes for each token that a decoder layer keeps for the backward pass; size: of an element in the computing dtype.

    A gated decoder layer with rotary positions, as Llama and Qwen have it: RMS norms compute in float32.
    """
    hidden, wide, queries, keys = shape.hidden, shape.intermediate, shape.queries, shape.keys
    if checkpointing == "layer":
        return size * hidden
    if checkpointing == "selective":  # its input, and the products: q, k, v, attention, o, gate, up, down
        return size * (3 * hidden + 2 * queries + 2 * keys + 2 * wide)
    norms = 2 * (4 * hidden + 2 * size * hidden)
    return norms + size * (2 * queries + 2 * keys + 4 * wide)


def smallest_gpu(bytes_needed: float) -> int | None:
    """GiB of the smallest GPU that holds so much; None where none does."""
    return next((gib for gib in GPU_GIB if bytes_needed <= USABLE * gib * 2**30), None)

"""An error for lack of memory says what did not fit, and which key makes it smaller."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from learner.batching.packed import PackedBatch
from learner.config import LearnerConfig
from learner.errors import OutOfMemoryError

_OF_THE_CPU = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "std::bad_alloc")
"""What torch's allocator says on a CPU, in a RuntimeError like any other."""


@contextmanager
def naming_what_fits_not(config: LearnerConfig, doing: str, batch: PackedBatch | None = None) -> Iterator[None]:
    """Raise OutOfMemoryError in place of whatever says that memory ran out within.

    doing: phase and microbatch, for people.    batch: the microbatch that was computed; None for what goes by the policy's size.
    """
    try:
        yield
    except OutOfMemoryError:
        raise  # named already, by what is nearer to it
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory at {doing}{_size(batch)} ({_reason(error)}): {', or '.join(_remedies(config, batch))}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on a GPU, in torch on a CPU, or in Python."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_THE_CPU)


def _size(batch: PackedBatch | None) -> str:
    if batch is None:
        return ""
    rows = f"{batch.samples} sample{'s' if batch.samples != 1 else ''}"
    return f", which has {len(batch.input_ids)} tokens (shared ones once) of {rows}"


def _reason(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    # What the allocator of a CPU says begins with where it says it.
    said = text.splitlines()[0].rpartition("DefaultCPUAllocator: ")[2]
    return said.partition(". GPU ")[0].rstrip(".")


def _remedies(config: LearnerConfig, batch: PackedBatch | None) -> list[str]:
    memory, found = config.memory, []
    if batch is not None:
        if batch.samples > 1:
            found.append(f"lower learner.microbatch_tokens ({config.microbatch_tokens})")
        if memory.activation_checkpointing != "layer":
            found.append("set learner.memory.activation_checkpointing: layer")
        elif batch.samples <= 1:
            found.append("lower learner.memory.logit_elements")
    if config.gpus > 0 and not memory.offload_optimizer:
        found.append("set learner.memory.offload_optimizer: true")
    return [*found, f"raise learner.world_size ({config.world_size})"]

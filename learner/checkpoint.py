"""Learner checkpoints: policy, optimiser state and schedule through torch's distributed checkpoints, for any world size.

They are safetensors, one file a rank: torch's own format has its index pickled, and whoever can write into a run directory
could then run code in the learner.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from learner.errors import LearnerError
from learner.model.policy import Policy, changing_tensors, reshard
from learner.optim.optimizers import Optimizers, state_tensors


def save_checkpoint(directory: str | Path, policy: Policy, optimizers: Optimizers, step: int) -> None:
    """Write a checkpoint. Collective: every rank calls it with the same directory, on a file system they all see."""
    reshard(policy)
    counters = _counters(step, optimizers.updates, dist.get_world_size())
    counters[f"rank.{dist.get_rank()}"] = torch.tensor(dist.get_rank())  # so that every rank writes a file
    writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
    dcp.save(_entries(policy, optimizers.state()) | counters, storage_writer=writer)


def load_checkpoint(directory: str | Path, policy: Policy, optimizers: Optimizers) -> int:
    """Read a checkpoint in place and return its step. Collective. The world size may differ from the one that saved.

    Raises torch's CheckpointException where a tensor is missing or has another shape: another policy, or a
    `learner.trainable` that matches other parameters; LearnerError where files are missing.
    """
    counters = _counters(0, 0, 0)
    dcp.load(counters, storage_reader=HuggingFaceStorageReader(str(directory)))
    found, wanted = len(list(Path(directory).glob("*.safetensors"))), int(counters["files"])
    if found != wanted:  # what stood in them would be left as it is in memory, without a word
        raise LearnerError(f"checkpoint {directory}: {found} of its {wanted} files are there; go on from another one")
    reshard(policy)
    optimizers.updates = int(counters["updates"])
    state = optimizers.state()
    dcp.load(_entries(policy, state), storage_reader=HuggingFaceStorageReader(str(directory)))
    optimizers.restore(state)
    return int(counters["step"])


def _entries(policy: Policy, state: dict[str, Any]) -> dict[str, Any]:
    entries: dict[str, Any] = {f"policy.{name}": tensor.detach() for name, tensor in changing_tensors(policy)}
    return entries | {f"optimizer.{name}": tensor for name, tensor in state_tensors(state).items()}


def _counters(step: int, updates: int, files: int) -> dict[str, torch.Tensor]:
    return {"step": torch.tensor(step), "updates": torch.tensor(updates), "files": torch.tensor(files)}

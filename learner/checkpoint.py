"""Learner checkpoints: policy, AdamW state and schedule through torch's distributed checkpoints, for any world size."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from learner.optimizer import Optimizer
from learner.policy import Policy, named_tensors, trainable_parameters


def _entries(policy: Policy, optimizer: Optimizer) -> dict[str, Any]:
    entries: dict[str, Any] = {f"policy.{name}": tensor.detach() for name, tensor in named_tensors(policy)}
    for name, parameter in trainable_parameters(policy).items():
        for key, value in optimizer.adamw.state[parameter].items():
            entries[f"optimizer.{key}.{name}"] = value
    return entries


def save_checkpoint(directory: str | Path, policy: Policy, optimizer: Optimizer, step: int) -> None:
    """Write a checkpoint. Collective: every rank calls it with the same directory, on a file system they all see."""
    counters = {"step": torch.tensor(step), "updates": torch.tensor(optimizer.updates)}
    dcp.save(_entries(policy, optimizer) | counters, checkpoint_id=str(directory))


def load_checkpoint(directory: str | Path, policy: Policy, optimizer: Optimizer) -> int:
    """Read a checkpoint in place and return its step. Collective. The world size may differ from the one that saved.

    Raises torch's CheckpointException where a tensor is missing or has another shape: another policy, or a
    `learner.trainable` that matches other parameters.
    """
    counters = {"step": torch.tensor(0), "updates": torch.tensor(0)}
    dcp.load(_entries(policy, optimizer) | counters, checkpoint_id=str(directory))
    optimizer.resume_at(int(counters["updates"]))
    return int(counters["step"])

"""Learner checkpoints: policy, optimiser state and schedule, written by any number of ranks and read by any other.

In two halves: `capture` copies what a rank holds into host memory, between two steps; `Captured.write` puts the copy on the disk,
from another thread while the rank trains on. They are safetensors, one file a rank, so nothing has to be unpickled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist

from learner.errors import CheckpointError
from learner.model.policy import Policy, changing_tensors, reshard
from learner.model.second_weights import SecondWeights
from learner.optim.optimizers import Optimizers, state_tensors
from learner.shard_files import Piece, PieceFiles, copied_pieces, local_part, write_pieces

POLICY = "policy."
"""What stands before a parameter's name in a checkpoint."""
_OPTIMIZER = "optimizer."
NOTHING_BESIDE: Mapping[str, SecondWeights] = MappingProxyType({})
"""No weights beside the policy's."""


@dataclass(frozen=True, slots=True)
class Captured:
    """What one rank writes of a checkpoint, in host memory: later steps do not change it."""

    pieces: dict[str, Piece]
    rank: int
    world_size: int

    def write(self, directory: str | Path) -> None:
        """Write this rank's file into a directory that all ranks see; on the disk when this returns. Not collective.

        Raises CheckpointError where it does not fit or cannot be written.
        """
        path = Path(directory) / f"rank-{self.rank:05d}-of-{self.world_size:05d}.safetensors"
        write_pieces(path, self.pieces, self.world_size)


def capture(
    policy: Policy, optimizers: Optimizers, step: int, second: Mapping[str, SecondWeights] = NOTHING_BESIDE
) -> Captured:
    """Copy this rank's part of the state after `step` steps into host memory. Not collective.

    second: weights beside the policy's that steps change, each under its name and a dot.
    """
    reshard(policy)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    pieces = copied_pieces(_entries(policy, optimizers.state(), second))
    if rank == 0:
        counters = {"step": step, "updates": optimizers.updates, "files": ranks}
        pieces |= {name: Piece(torch.tensor(value), ()) for name, value in counters.items()}
    return Captured(pieces, rank, ranks)


def load_checkpoint(
    directory: str | Path,
    policy: Policy,
    optimizers: Optimizers,
    second: Mapping[str, SecondWeights] = NOTHING_BESIDE,
) -> int:
    """Read a checkpoint in place and return its step. The number of ranks may differ from the one that wrote it.

    Raises CheckpointError where files are missing or damaged, or are of another policy, adapter or optimiser.
    """
    with PieceFiles(Path(directory)) as files:
        refuse_missing_files(files)
        reshard(policy)
        optimizers.updates = int(files.read("updates"))
        state = optimizers.state()
        entries = _entries(policy, state, second)
        _refuse_other_tensors(files, entries)
        for name, tensor in entries.items():
            files.read_into(name, local_part(tensor))
        optimizers.restore(state)
        return int(files.read("step"))


def refuse_missing_files(files: PieceFiles) -> None:
    """Raise CheckpointError unless every rank's file is there: what stood in them would be left as it is, without a word."""
    wanted = int(files.read("files")) if "files" in files.shapes else None
    if len(files.files) != wanted:
        of = "" if wanted is None else f" of its {wanted}"
        raise CheckpointError(
            f"checkpoint {files.directory}: {len(files.files)}{of} files are there; go on from another checkpoint"
        )


def _refuse_other_tensors(files: PieceFiles, entries: dict[str, torch.Tensor]) -> None:
    shapes = files.shapes
    others = [
        f"{name} has the shape {list(shapes[name])} and here {list(tensor.shape)}"
        if name in shapes
        else f"it has no {name}"
        for name, tensor in entries.items()
        if shapes.get(name) != tuple(tensor.shape)
    ]
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise CheckpointError(
            f"checkpoint {files.directory} does not fit: {others[0]}{more}; resume with the policy, learner.trainable, learner.adapter, "
            "learner.optimizer and learner.kl that wrote it"
        )


def _entries(policy: Policy, state: dict[str, Any], second: Mapping[str, SecondWeights]) -> dict[str, torch.Tensor]:
    beside = {f"{kind}.{name}": tensor for kind, held in second.items() for name, tensor in held.tensors.items()}
    entries = beside | {f"{POLICY}{name}": tensor.detach() for name, tensor in changing_tensors(policy)}
    return entries | {f"{_OPTIMIZER}{name}": tensor for name, tensor in state_tensors(state).items()}

"""The policy out of a checkpoint on a disk: by one process, without ranks, an optimiser, or more memory than the policy takes."""

from collections.abc import Iterator
from pathlib import Path

import torch

from actors.engines.file_names import file_tensors, sent_tensors
from actors.engines.policy_files import meta_model, read_config
from learner.checkpoint import POLICY, refuse_missing_files
from learner.errors import CheckpointError
from learner.export import write_policy
from learner.shard_files import PieceFiles


def export_checkpoint(checkpoint: Path, target: Path, policy_path: str, dtype: torch.dtype) -> None:
    """Write what `from_pretrained` loads, floating-point weights as `dtype`.

    checkpoint: what the learner wrote.    policy_path: the policy that the run began with, for its config and tokenizer.
    Raises CheckpointError where the checkpoint is not whole or not of this policy.
    """
    model = meta_model(read_config(policy_path))
    with PieceFiles(checkpoint) as files:
        refuse_missing_files(files)
        shapes = {name: tuple(tensor.shape) for name, tensor in sent_tensors(model)}
        there = {name.removeprefix(POLICY): shape for name, shape in files.shapes.items() if name.startswith(POLICY)}
        if others := sorted(name for name in shapes.keys() | there.keys() if shapes.get(name) != there.get(name)):
            raise CheckpointError(
                f"checkpoint {checkpoint} is not of the policy {policy_path}: {others[0]} is {there.get(others[0], 'missing')} in it "
                f"and {shapes.get(others[0], 'missing')} there; set `policy` to the one that the run began with"
            )
        write_policy(target, dict(file_tensors(model, _read(files, list(shapes), dtype))), policy_path, dtype)


def _read(files: PieceFiles, names: list[str], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    for name in names:
        tensor = files.read(POLICY + name)
        yield name, tensor.to(dtype) if tensor.is_floating_point() else tensor

"""The policy out of a checkpoint on a disk: by one process, without ranks, an optimiser, or more memory than the policy takes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from actors.engines.file_names import file_tensors, sent_tensors
from actors.engines.policy_files import meta_model, read_config
from learner.adapters import AnyAdapter, NoAdapter
from learner.adapters.layers import Adapter
from learner.adapters.options import LowRank
from learner.checkpoint import POLICY, refuse_missing_files
from learner.errors import CheckpointError
from learner.export import write_policy, written_dtype
from learner.shard_files import PieceFiles

NO_ADAPTER = NoAdapter()


def export_checkpoint(
    checkpoint: Path, target: Path, policy_path: str, dtype: torch.dtype, options: AnyAdapter = NO_ADAPTER
) -> None:
    """Write what `from_pretrained` loads, floating-point weights as `dtype`, an adapter merged.

    checkpoint: what the learner wrote.    policy_path: the policy that the run began with, for its config and tokenizer.
    options: of the run's adapter. Raises CheckpointError where the checkpoint is not whole or not of this policy.
    """
    with PieceFiles(checkpoint) as files:
        refuse_missing_files(files)
        if isinstance(options, LowRank):
            tensors = _merged(files, policy_path, options, dtype)
        else:
            model = meta_model(read_config(policy_path))
            _refuse_other_shapes(files, dict(sent_tensors(model)), policy_path)
            tensors = dict(file_tensors(model, _read(files, model, dtype)))
        write_policy(target, tensors, policy_path, dtype)


def export_checkpoint_adapter(
    checkpoint: Path, target: Path, policy_path: str, dtype: torch.dtype, options: LowRank
) -> None:
    """Write the adapter alone, as a directory that peft and vLLM load beside the policy. Arguments and errors as above."""
    with PieceFiles(checkpoint) as files:
        refuse_missing_files(files)
        adapter = _adapter(files, meta_model(read_config(policy_path)), policy_path, options)
        adapter.export(target, policy_path, dtype, write=True)


def _merged(files: PieceFiles, policy_path: str, options: LowRank, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors of the policy in files, with what the adapter adds to them."""
    model = AutoModelForCausalLM.from_pretrained(policy_path, dtype=torch.float32, trust_remote_code=False)
    own = dict(sent_tensors(model))
    adapter = _adapter(files, model, policy_path, options)
    added = ((name, adapter.merged(name, tensor.detach())) for name, tensor in own.items())
    cast = ((name, tensor.to(written_dtype(tensor, dtype))) for name, tensor in added)
    return dict(file_tensors(meta_model(model.config), cast))


def _adapter(files: PieceFiles, model: Any, policy_path: str, options: LowRank) -> Adapter:
    """The checkpoint's adapter, in a model whose other parameters may be on `meta`."""
    adapter = Adapter(model, options, seed=0)  # of starting values, which nobody draws
    parameters = adapter.parameters()
    _refuse_other_shapes(files, parameters, policy_path)
    for name in parameters:
        layer, part, expert, _ = name.rsplit(".", 3)
        getattr(adapter.layers[layer], part)[expert].weight = nn.Parameter(files.read(POLICY + name))
    return adapter


def _refuse_other_shapes(files: PieceFiles, wanted: Mapping[str, torch.Tensor], policy_path: str) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    there = {name.removeprefix(POLICY): shape for name, shape in files.shapes.items() if name.startswith(POLICY)}
    if others := sorted(name for name in shapes.keys() | there.keys() if shapes.get(name) != there.get(name)):
        raise CheckpointError(
            f"checkpoint {files.directory} is not of the policy {policy_path}: {others[0]} is {there.get(others[0], 'missing')} in it "
            f"and {shapes.get(others[0], 'missing')} there; set `policy` to the one that the run began with"
        )


def _read(files: PieceFiles, model: Any, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    for name, _ in sent_tensors(model):
        tensor = files.read(POLICY + name)
        yield name, tensor.to(written_dtype(tensor, dtype))

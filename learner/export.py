"""The whole policy out of its shards: for the rollout actors, and as a Hugging Face directory."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import AutoConfig

from actors.engines.file_names import file_tensors
from actors.weights.block import Layout
from learner.model.policy import Policy, named_tensors

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".index.json")


def full_tensors(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and full tensors as the policy's files have them, an adapter merged, on the CPU, floating-point ones as `dtype`; yields on rank 0 only.

    Collective: every rank must run it to its end. One parameter is whole at a time, on every rank; on one CPU rank it may be the
    policy's own memory.
    """
    gathered = _gathered(policy, dtype)
    if dist.get_rank() == 0:
        yield from file_tensors(policy.model, gathered)
    else:
        yield from gathered


def _gathered(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    keep = dist.get_rank() == 0
    with torch.no_grad():
        for name, tensor in named_tensors(policy):
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if policy.adapter is not None:
                full = policy.adapter.merged(name, full)
            if keep:
                yield name, full.detach().to("cpu", written_dtype(full, dtype))


def written_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    """That of a tensor where weights are written as `dtype`: whole numbers stay what they are."""
    return dtype if tensor.is_floating_point() else tensor.dtype


def file_layout(policy: Policy, dtype: torch.dtype) -> Layout:
    """Where each of `full_tensors` lies in the block that an offer travels in. Not collective."""
    whole = (
        (name, torch.empty(tensor.shape, dtype=written_dtype(tensor, dtype), device="meta"))
        for name, tensor in named_tensors(policy)
    )
    return Layout((name, tensor.dtype, tensor.shape) for name, tensor in file_tensors(policy.model, whole))


def export_directory(directory: str | Path, policy: Policy, policy_path: str | Path, dtype: torch.dtype) -> None:
    """Write config, weights and tokenizer files that `from_pretrained` loads. Collective; rank 0 writes.

    policy_path: where the policy came from, a directory or a model name; all its files but the weights are copied.
    """
    tensors = dict(full_tensors(policy, dtype))
    if dist.get_rank() == 0:
        write_policy(Path(directory), tensors, policy_path, dtype)
    dist.barrier()


def export_adapter(directory: str | Path, policy: Policy, policy_path: str | Path, dtype: torch.dtype) -> None:
    """Write the adapter alone, as a directory that peft and vLLM load beside the policy at `policy_path`. Collective; rank 0 writes.

    Raises ValueError for a policy without an adapter.
    """
    if policy.adapter is None:
        raise ValueError("learner.adapter: none, so that there is no adapter to export; export the whole policy")
    policy.adapter.export(directory, str(policy_path), dtype, write=dist.get_rank() == 0)
    dist.barrier()


def write_policy(
    target: Path, tensors: Mapping[str, torch.Tensor], policy_path: str | Path, dtype: torch.dtype
) -> None:
    """Write a Hugging Face directory: these weights, and all files but the weights of the policy that they came of."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source_directory(policy_path).iterdir():
        if file.is_file() and not file.name.endswith(WEIGHT_SUFFIXES):
            shutil.copyfile(file, target / file.name)
    model_config = AutoConfig.from_pretrained(policy_path, trust_remote_code=False)
    model_config.dtype = dtype
    model_config.save_pretrained(target)
    save_file(dict(tensors), target / "model.safetensors", metadata={"format": "pt"})


def download(policy_path: str | Path) -> Path:
    """Directory with the files of a policy; fetches those of a model name that are not here yet."""
    if Path(policy_path).is_dir():
        return Path(policy_path)
    wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    return Path(snapshot_download(str(policy_path), allow_patterns=wanted))


def source_directory(policy_path: str | Path) -> Path:
    """Where the files of a policy are on this machine: the directory itself, or where a model name was loaded from."""
    path = Path(policy_path)
    return path if path.is_dir() else Path(snapshot_download(str(policy_path), local_files_only=True))

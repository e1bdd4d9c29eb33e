"""Loading: the policy is built on the meta device, sharded, and every rank reads its own part of each tensor."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import AutoModelForCausalLM

from actors.engines.policy_files import UnfitPolicyError, meta_model, read_config
from learner.adapters.layers import Adapter
from learner.adapters.options import LowRank
from learner.config import LearnerConfig
from learner.export import download
from learner.model.check import why_padded
from learner.model.policy import Policy, choose_head, freeze, plain_name, shard

logger = logging.getLogger(__name__)

Slices = Callable[[str, tuple[slice, ...]], torch.Tensor]
"""Part of a named tensor of the checkpoint."""


def load_policy(
    path: str,
    config: LearnerConfig,
    mesh: DeviceMesh,
    trainable: str | None,
    entropy_grad: bool = False,
    longest_sample: int | None = None,
    seed: int = 0,
) -> Policy:
    """The policy in a Hugging Face directory as float32 shards over the mesh. No rank holds all of it.

    trainable: see `freeze`; None also leaves out the adapter.    longest_sample: see `why_padded`.    seed: of the adapter's
    starting values. Raises ValueError where the architecture or the
    pattern does not fit, before any memory is spent on it.
    """
    model_config = read_config(path)
    policy = Policy(meta_model(model_config), config.share_prompt, entropy_grad, config.memory.logit_elements)
    reason = why_padded(policy.model, longest_sample)
    if reason is not None:
        policy.share_prompt, policy.padded = False, True
        if trainable is not None and mesh.get_rank() == 0:
            logger.warning("samples of this policy are padded and share no tokens: %s", reason)
    if isinstance(config.adapter, LowRank) and trainable is not None:
        policy.adapter = Adapter(policy.model, config.adapter, seed)
        policy.eval()
    freeze(policy, trainable)
    shard(policy, config, mesh)
    device = (
        torch.device(mesh.device_type, torch.cuda.current_device())
        if mesh.device_type == "cuda"
        else torch.device("cpu")
    )
    choose_head(policy, config, device)
    with _checkpoint(path, policy) as (present, read):
        _fill(policy, _with_start(policy.adapter, present, read), device)
    return policy


@contextmanager
def _checkpoint(path: str, policy: Policy) -> Iterator[tuple[set[str], Slices]]:
    """Names in the checkpoint, and how to read a part of one; in files where their names are the model's."""
    with ExitStack() as open_files:
        files = [
            open_files.enter_context(safe_open(file, framework="pt"))
            for file in sorted(download(path).glob("*.safetensors"))
        ]
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        beside = set() if policy.adapter is None else set(policy.adapter.parameters())
        wanted = [names for names, _ in _parameters(policy) if not beside.issuperset(names)]
        if all(any(name in where for name in names) for names in wanted):
            yield set(where), lambda name, part: where[name].get_slice(name)[part]
            return
        # Transformers renames or joins tensors while it loads some architectures; then it has to load them.
        logger.warning("%s: its files name tensors otherwise than the model, so every rank reads it whole", path)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype="auto", trust_remote_code=False, output_loading_info=True
        )
        model, found = loaded
        if found["missing_keys"]:
            raise UnfitPolicyError(f"policy: {path} does not hold {', '.join(sorted(found['missing_keys'])[:3])}")
        whole = model.state_dict()
        yield set(whole), lambda name, part: whole[name][part]


def _with_start(adapter: Adapter | None, present: set[str], read: Slices) -> tuple[set[str], Slices]:
    """As if the checkpoint also held the starting values of the adapter."""
    if adapter is None:
        return present, read
    beside = adapter.parameters().keys()

    def also(name: str, part: tuple[slice, ...]) -> torch.Tensor:
        return adapter.start_of(name)[part] if name in beside else read(name, part)

    return present | beside, also


def _parameters(policy: Policy) -> list[tuple[list[str], nn.Parameter]]:
    """Every parameter once, with all its Hugging Face names."""
    names: dict[int, list[str]] = {}
    parameters: dict[int, nn.Parameter] = {}
    for name, parameter in policy.model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(plain_name(name))
        parameters[id(parameter)] = parameter
    return [(names[key], parameter) for key, parameter in parameters.items()]


@torch.no_grad()
def _fill(policy: Policy, checkpoint: tuple[set[str], Slices], device: torch.device) -> None:
    """Give every tensor on `meta` its values: parameters and saved buffers from the checkpoint, other buffers as the model has it."""
    present, read = checkpoint
    names = {id(parameter): names for names, parameter in _parameters(policy)}
    filled: dict[int, nn.Parameter] = {}
    for module in policy.model.modules():
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in filled:
                name = next(name for name in names[id(parameter)] if name in present)
                filled[id(parameter)] = _own_part(parameter, partial(read, name), device)
            module._parameters[key] = filled[id(parameter)]
    saved = policy.model.state_dict(keep_vars=True)
    prefixes = {id(module): prefix for prefix, module in policy.model.named_modules()}
    for module in policy.model.modules():
        module.__dict__.pop("_is_hf_initialized", None)
        for key, buffer in module._buffers.items():
            if buffer is None or not buffer.is_meta:
                continue
            module._buffers[key] = real = torch.empty_like(buffer, device=device)
            full = f"{prefixes[id(module)]}.{key}".lstrip(".")
            name = plain_name(full)
            if full in saved and name in present:
                real.copy_(read(name, (slice(None),) * real.dim()))
                real._is_hf_initialized = True  # type: ignore[attr-defined]
    # Parameters are marked as done, so that only the buffers that no file holds are computed.
    policy.model.initialize_weights()  # type: ignore[operator]
    # An `_apply` lets FSDP take notice of the new tensors.
    policy.to(device)


def _own_part(
    parameter: nn.Parameter, read: Callable[[tuple[slice, ...]], torch.Tensor], device: torch.device
) -> nn.Parameter:
    """The same sharded parameter with this rank's values."""
    meta = parameter.data
    assert isinstance(meta, DTensor)
    shape, offset = compute_local_shape_and_global_offset(meta.shape, meta.device_mesh, meta.placements)
    if 0 in shape:
        local = torch.empty(shape, dtype=torch.float32, device=device)
    else:
        # A copy of its own: a slice may be a view of the file.
        part = read(tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True)))
        local = torch.empty(shape, dtype=torch.float32, device=device).copy_(part)
    whole = DTensor.from_local(
        local, meta.device_mesh, meta.placements, run_check=False, shape=meta.shape, stride=meta.stride()
    )
    real = nn.Parameter(whole, requires_grad=parameter.requires_grad)
    real._is_hf_initialized = True  # type: ignore[attr-defined]
    return real

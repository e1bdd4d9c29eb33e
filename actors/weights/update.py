"""What a weight update is: every tensor of the policy in one checksummed block, under a policy version."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load, save


class WeightUpdateError(RuntimeError):
    """A weight update that did not arrive whole; the engine that saw it must not serve."""


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """The whole policy at one version. Travels through Ray's object store: one copy a node, read without copying.

    blob: [bytes] uint8, a safetensors file.    checksum: sha256 of the blob, in hex.
    """

    version: int
    checksum: str
    blob: np.ndarray


def pack_weights(tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> WeightUpdate:
    """Serialise named CPU tensors (Hugging Face names, full shapes) as one update."""
    blob = np.frombuffer(save({name: tensor.contiguous() for name, tensor in tensors}), dtype=np.uint8)
    return WeightUpdate(version=version, checksum=hashlib.sha256(blob.data).hexdigest(), blob=blob)


def verify_checksum(update: WeightUpdate) -> None:
    """Raise `WeightUpdateError` unless the blob is what the learner packed."""
    found = hashlib.sha256(update.blob.data).hexdigest()
    if found != update.checksum:
        raise WeightUpdateError(
            f"weights of policy version {update.version} arrived damaged: sha256 {found[:12]}…, expected {update.checksum[:12]}…"
        )


def unpack_weights(update: WeightUpdate) -> dict[str, torch.Tensor]:
    """The named tensors of a verified update."""
    verify_checksum(update)
    return load(update.blob.tobytes())

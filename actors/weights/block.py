"""The block of bytes in which weights travel: every tensor at its place, read there without a copy, and checked.

Pure: a transport (`actors.weights.transport`) decides where the block is put.
"""

import hashlib
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from actors.weights.offer import Blob, TensorEntry, WeightError, WeightOffer

ALIGNMENT = 64
"""Every tensor begins at a multiple of so many bytes, so that it is read in place whatever its dtype."""


def pack(tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> tuple[WeightOffer, Blob]:
    """The policy at `version` as an offer that has no address yet, and its bytes.

    tensors: by their names in the policy's files, whole, on the CPU.
    """
    given = [(name, tensor.detach().contiguous()) for name, tensor in tensors]
    starts, size = _places([tensor.nbytes for _, tensor in given])
    blob = np.zeros(size, dtype=np.uint8)
    manifest = []
    for (name, tensor), start in zip(given, starts, strict=True):
        part = blob[start : start + tensor.nbytes]
        part[:] = tensor.reshape(-1).view(torch.uint8).numpy()
        dtype = str(tensor.dtype).removeprefix("torch.")
        manifest.append(TensorEntry(name, dtype, tuple(tensor.shape), _checksum(part)))
    return WeightOffer(version, "full", None, tuple(manifest), address=None), blob


def verify(offer: WeightOffer) -> None:
    """Raise WeightError unless the block of a fetched offer holds every tensor of its manifest, undamaged."""
    sizes = [_nbytes(entry) for entry in offer.manifest]
    starts, size = _places(sizes)
    blob: Blob = offer.address
    if len(blob) != size:
        raise WeightError(
            f"weights of policy version {offer.version} are {len(blob)} bytes, their manifest says {size}"
        )
    for entry, start, length in zip(offer.manifest, starts, sizes, strict=True):
        found = _checksum(blob[start : start + length])
        if found != entry.checksum:
            raise WeightError(
                f"weights of policy version {offer.version} arrived damaged: sha256 of {entry.name} is "
                f"{found[:12]}…, expected {entry.checksum[:12]}…"
            )


def open_tensors(manifest: Sequence[TensorEntry], blob: Blob) -> dict[str, torch.Tensor]:
    """The tensors of a block by name, in place: nothing is copied, and nothing may be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor does anybody write
        whole = torch.from_numpy(blob)
    sizes = [_nbytes(entry) for entry in manifest]
    return {
        entry.name: whole[start : start + length].view(getattr(torch, entry.dtype)).reshape(entry.shape)
        for entry, start, length in zip(manifest, _places(sizes)[0], sizes, strict=True)
    }


def _places(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where tensors of so many bytes begin, and the size of the whole block."""
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return starts, end


def _nbytes(entry: TensorEntry) -> int:
    itemsize: int = getattr(torch, entry.dtype).itemsize
    return int(np.prod(entry.shape, dtype=np.int64)) * itemsize


def _checksum(part: Blob) -> str:
    return hashlib.sha256(part.data).hexdigest()

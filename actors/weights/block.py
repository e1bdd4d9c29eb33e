"""The block of bytes in which weights travel: every tensor at its place, written and read there without a copy, and checked.

Pure: a transport (`actors.weights.transport`) decides in which memory the block lies.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from actors.weights.offer import Blob, TensorEntry, WeightError, WeightOffer

ALIGNMENT = 64
"""Every tensor begins at a multiple of so many bytes, so that it is read in place whatever its dtype."""


@dataclass(frozen=True, slots=True)
class _Place:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def end(self) -> int:
        return self.start + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Layout:
    """Where in its block each tensor of a policy lies: the same for every version, so that one block is written again and again."""

    def __init__(self, tensors: Iterable[tuple[str, torch.dtype, Sequence[int]]]) -> None:
        """tensors: name in the policy's files, dtype and whole shape of each, in the order in which they will be written."""
        self._places: list[_Place] = []
        self.size = 0
        """Bytes of the block."""
        for name, dtype, shape in tensors:
            place = _Place(name, dtype, tuple(shape), self.size)
            self._places.append(place)
            self.size += -(-(place.end - place.start) // ALIGNMENT) * ALIGNMENT

    def write(self, tensors: Iterable[tuple[str, torch.Tensor]], blob: Blob, version: int) -> WeightOffer:
        """Write the policy at `version` into `blob`, [size] bytes; returns its offer, which has no address yet.

        tensors: those of this layout in its order, in any dtype and on any device; each is done with when the next one is asked
        for. Raises ValueError for any other tensor.
        """
        parts = dict(self._open(blob))
        manifest = []
        for place, (name, tensor) in zip(self._places, tensors, strict=True):
            if (place.name, place.shape) != (name, tuple(tensor.shape)):
                raise ValueError(
                    f"{name} of shape {tuple(tensor.shape)} comes where {place.name} {place.shape} belongs"
                )
            parts[name].copy_(tensor.detach())
            dtype = str(place.dtype).removeprefix("torch.")
            manifest.append(TensorEntry(name, dtype, place.shape, _checksum(blob[place.start : place.end])))
        return WeightOffer(version, "full", None, tuple(manifest), address=None)

    def check(self, offer: WeightOffer) -> None:
        """Raise WeightError unless the block of a fetched offer, which has this layout, is whole and undamaged."""
        blob: Blob = offer.address
        if len(blob) != self.size:
            raise WeightError(
                f"weights of policy version {offer.version} are {len(blob)} bytes, their manifest says {self.size}"
            )
        for entry, place in zip(offer.manifest, self._places, strict=True):
            found = _checksum(blob[place.start : place.end])
            if found != entry.checksum:
                raise WeightError(
                    f"weights of policy version {offer.version} arrived damaged: the checksum of {entry.name} is {found}, "
                    f"expected {entry.checksum}"
                )

    def _open(self, blob: Blob) -> Iterator[tuple[str, torch.Tensor]]:
        with warnings.catch_warnings():
            # Nor does a reader write.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            whole = torch.from_numpy(blob)
        for place in self._places:
            yield place.name, whole[place.start : place.end].view(place.dtype).reshape(place.shape)

    def open(self, blob: Blob) -> dict[str, torch.Tensor]:
        """The tensors of a block by name, in place."""
        return dict(self._open(blob))


def own_room(size: int) -> Blob:
    """[size] bytes of this process alone."""
    return np.zeros(size, dtype=np.uint8)


def pack(tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> tuple[WeightOffer, Blob]:
    """The policy at `version` as an offer that has no address yet, and its bytes in memory of their own.

    tensors: by their names in the policy's files, whole.
    """
    given = list(tensors)
    layout = Layout((name, tensor.dtype, tensor.shape) for name, tensor in given)
    blob = own_room(layout.size)
    return layout.write(given, blob, version), blob


def verify(offer: WeightOffer) -> None:
    """Raise WeightError unless the block of a fetched offer holds every tensor of its manifest, undamaged."""
    _layout_of(offer.manifest).check(offer)


def open_tensors(manifest: Sequence[TensorEntry], blob: Blob) -> dict[str, torch.Tensor]:
    """The tensors of a block by name, in place: nothing is copied, and nothing may be written to."""
    return _layout_of(manifest).open(blob)


def _layout_of(manifest: Sequence[TensorEntry]) -> Layout:
    return Layout((entry.name, getattr(torch, entry.dtype), entry.shape) for entry in manifest)


def _checksum(part: Blob) -> str:
    return xxhash.xxh3_64_hexdigest(part.data)

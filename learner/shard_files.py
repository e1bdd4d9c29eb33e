"""Tensors that lie in pieces in safetensors files, one file a rank: each rank writes what it holds, anybody reads any part.

Nothing here is collective, so that a file can be written while the ranks train on. The layout is that of torch's distributed
checkpoints in safetensors (`HuggingFaceStorageWriter`), whose own writer plans collectively and holds every byte twice.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from learner.errors import CheckpointError
from moments_service.durable import put_file

SHARDING = "DCP_SHARDING_INFO"
"""In a file's metadata: where in the whole tensors its pieces begin, `{name: {"saved_offsets": [...]}}`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a tensor, and where in the whole it begins."""

    tensor: torch.Tensor
    offset: tuple[int, ...]


def local_part(tensor: torch.Tensor) -> Piece:
    """What this rank holds of a tensor: of one that is not sharded all of it."""
    if not isinstance(tensor, DTensor):
        return Piece(tensor.detach(), (0,) * tensor.dim())
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Piece(tensor.to_local().detach(), tuple(offset))


def copied_pieces(tensors: Mapping[str, torch.Tensor]) -> dict[str, Piece]:
    """Copies in host memory of what this rank is to write: its shards, and on rank 0 what every rank has."""
    pieces = {}
    for name, tensor in tensors.items():
        part = local_part(tensor)
        if part.tensor.numel() == 0 or not _is_first_holder(tensor):
            continue
        # Pinned memory is cached by torch, so that a GPU's checkpoints after the first copy at full speed.
        host = torch.empty(part.tensor.shape, dtype=part.tensor.dtype, pin_memory=part.tensor.is_cuda)
        pieces[name] = Piece(host.copy_(part.tensor, non_blocking=True), part.offset)
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()
    return pieces


def _is_first_holder(tensor: torch.Tensor) -> bool:
    if not isinstance(tensor, DTensor):
        return dist.get_rank() == 0
    place: Sequence[int] = tensor.device_mesh.get_coordinate() or ()
    return all(at == 0 for at, how in zip(place, tensor.placements, strict=True) if how.is_replicate())


def write_pieces(path: Path, pieces: Mapping[str, Piece], ranks: int) -> None:
    """Write a file whole, on the disk when this returns. ranks: how many write as much beside it.

    Raises CheckpointError where it does not fit or cannot be written.
    """
    needed = ranks * sum(piece.tensor.nbytes for piece in pieces.values())
    partial = path.with_name(f"{path.name}.partial")
    about = {name: {"saved_offsets": list(piece.offset)} for name, piece in pieces.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(path.parent).free) < needed:
            raise CheckpointError(
                f"checkpoint {path.parent}: it takes {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free there; free some, lower "
                "checkpoint.keep, or name another runs_dir"
            )
        tensors = {name: piece.tensor for name, piece in pieces.items()}
        save_file(tensors, partial, metadata={"format": "pt", SHARDING: json.dumps(about)})
        put_file(partial, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {path.parent}: {path.name} cannot be written ({error}); see that there is room and that the place is writable"
        ) from error


class PieceFiles:
    """All pieces in the safetensors files of a directory; a context that holds the files open."""

    def __init__(self, directory: Path) -> None:
        """Raises CheckpointError for a file that is damaged."""
        self.directory = directory
        self.files = sorted(directory.glob("*.safetensors"))
        self._open = ExitStack()
        self._pieces: dict[str, list[tuple[Any, tuple[int, ...], tuple[int, ...]]]] = {}
        for path in self.files:
            try:
                file = self._open.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                raise CheckpointError(f"checkpoint {directory}: {path.name} is damaged ({error})") from None
            about = json.loads((file.metadata() or {}).get(SHARDING, "{}"))
            for name in file.keys():  # noqa: SIM118
                shape = tuple(file.get_slice(name).get_shape())
                offset = tuple(about.get(name, {}).get("saved_offsets", (0,) * len(shape)))
                self._pieces.setdefault(name, []).append((file, offset, shape))

    def __enter__(self) -> "PieceFiles":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every whole tensor."""
        return {name: _whole([(offset, shape) for _, offset, shape in found]) for name, found in self._pieces.items()}

    def read_into(self, name: str, part: Piece) -> None:
        """Fill a part of a tensor, in place, whatever the pieces are cut like."""
        wanted = [(start, start + size) for start, size in zip(part.offset, part.tensor.shape, strict=True)]
        for file, offset, shape in self._pieces[name]:
            common = [
                (max(low, start), min(high, start + size))
                for (low, high), start, size in zip(wanted, offset, shape, strict=True)
            ]
            if all(low < high for low, high in common):
                there = tuple(slice(low - at, high - at) for (low, high), at in zip(common, offset, strict=True))
                here = tuple(slice(low - at, high - at) for (low, high), at in zip(common, part.offset, strict=True))
                part.tensor[here].copy_(file.get_slice(name)[there])

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor, in the dtype of the files."""
        shape = self.shapes[name]
        file, _, first = self._pieces[name][0]
        dtype = file.get_slice(name)[tuple(slice(0, min(1, size)) for size in first)].dtype
        whole = torch.empty(shape, dtype=dtype)
        self.read_into(name, Piece(whole, (0,) * len(shape)))
        return whole


def _whole(pieces: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> tuple[int, ...]:
    ends = [[start + size for start, size in zip(offset, shape, strict=True)] for offset, shape in pieces]
    return tuple(map(max, zip(*ends, strict=True)))

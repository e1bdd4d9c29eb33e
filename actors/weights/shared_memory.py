"""Weights through memory that the processes of one machine share: written in place, read in place, copied for other machines alone."""

import secrets
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from actors.weights.memory_file import MemoryFile, map_locked, who_sees
from actors.weights.offer import Blob, WeightsReleasedError
from actors.weights.transport import Transport
from moments_service.config import StrictModel

_TOKEN = 16
_FOOTER = 64
"""Bytes behind the block: the token of its buffer, and the version that it holds."""
_UNFINISHED = -1
"""Version of a buffer that is being written."""


class SharedMemoryConfig(StrictModel):
    """Through memory shared by the processes of a machine, and through Ray's object store to engines on other nodes."""

    kind: Literal["shared_memory"] = "shared_memory"

    def create(self) -> Transport:
        return SharedMemory()


@dataclass(frozen=True, slots=True)
class PlacedBuffer:
    """Where a version lies.

    seen_by: `who_sees` of the learner.    token: no other buffer has it.    copy: an ObjectRef of the bytes, None where the run has
    one node.
    """

    version: int
    path: str
    seen_by: str
    token: bytes
    copy: Any


class _Buffer:
    """A block with its footer, in one MemoryFile."""

    def __init__(self, size: int) -> None:
        self.file = MemoryFile(size + _FOOTER)
        self.token = secrets.token_bytes(_TOKEN)
        self.block = self.file.bytes[:size]
        self.copy: Any = None
        """Held for as long as this buffer holds the same bytes: Ray drops it with the last reference."""
        self._footer = self.file.bytes[size:]
        self._footer[:_TOKEN] = np.frombuffer(self.token, np.uint8)
        self._hold(_UNFINISHED)

    def begin(self) -> bool:
        """Lock readers out and forget the version; False where one still reads it."""
        if not self.file.lock():
            return False
        self._hold(_UNFINISHED)
        self.copy = None
        return True

    def finish(self, version: int) -> None:
        self._hold(version)
        self.file.unlock()

    def _hold(self, version: int) -> None:
        self._footer[_TOKEN:][:8] = np.frombuffer(np.int64(version).tobytes(), np.uint8)


class SharedMemory:
    """Two buffers, written in turn, so that the newest version stays whole while the next one is written.

    A buffer is locked while it is written, and by each reader for as long as it reads: a reader never sees half a version, and
    whoever comes too late is told. A writer waits for nobody: where an old version is still read, a new buffer takes the place of
    its own, which lives until its last reader lets go. The kernel drops locks and memory with their processes.
    """

    def __init__(self) -> None:
        self._older: _Buffer | None = None
        self._newest: _Buffer | None = None
        self._writing: _Buffer | None = None

    def room(self, size: int) -> Blob:
        buffer, self._older = self._older, None
        if buffer is None or len(buffer.block) != size or not buffer.begin():
            buffer = _Buffer(size)
            buffer.begin()
        self._writing = buffer
        return buffer.block

    def place(self, blob: Blob, version: int, elsewhere: bool) -> PlacedBuffer:
        buffer, self._writing = self._writing, None
        if buffer is None or blob is not buffer.block:
            raise ValueError(f"policy version {version} was not written where there was room for it")
        buffer.finish(version)
        buffer.copy = _copied(blob) if elsewhere else None
        self._older, self._newest = self._newest, buffer
        return PlacedBuffer(version, buffer.file.path, who_sees(), buffer.token, buffer.copy)

    def open(self, placed: PlacedBuffer) -> tuple[Blob, str | None]:
        near = placed.seen_by == who_sees()
        if near and (found := _opened(placed)) is not None:
            return found
        if placed.copy is not None:
            return _fetched(placed.copy), None
        if near:
            raise WeightsReleasedError(
                f"policy version {placed.version} was released: newer weights have settled, or the learner that had them is gone"
            )
        raise WeightsReleasedError(
            f"policy version {placed.version} is in memory of a process that this one cannot see, although both are on one node: "
            "containers of their own need `weights: object_store`"
        )


def _copied(blob: Blob) -> Any:
    import ray  # not above: a learner without Ray reads this module's options

    return ray.put(blob)


def _fetched(copy: Any) -> Blob:
    import ray

    blob: Blob = ray.get(copy)
    return blob


def _opened(placed: PlacedBuffer) -> tuple[Blob, str] | None:
    """The block and a path of this process to it, if it holds that version."""
    try:
        mapped = map_locked(placed.path)
    except OSError:
        return None
    if mapped is None or len(mapped[0]) < _FOOTER:
        return None
    (whole, path), footer = mapped, mapped[0][-_FOOTER:]
    held = int(np.frombuffer(footer[_TOKEN:][:8].tobytes(), np.int64)[0])
    return (whole[:-_FOOTER], path) if footer[:_TOKEN].tobytes() == placed.token and held == placed.version else None

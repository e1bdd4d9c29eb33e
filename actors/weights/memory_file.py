"""Memory that other processes of this user on this machine map by a path, and that has no name: no kill leaves it behind.

A policy of 7B parameters is 14 GB. The kernel frees it with the last process that has it open or mapped.
"""

import fcntl
import mmap
import os
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np

from actors.weights.offer import Blob


class MemoryFile:
    """Of a fixed size; written in place by the process that made it, again and again."""

    def __init__(self, size: int) -> None:
        self._handle = os.memfd_create("bvblend-weights")
        os.ftruncate(self._handle, size)
        self.bytes: Blob = np.frombuffer(mmap.mmap(self._handle, size), dtype=np.uint8)
        self.path = _path_of(self._handle)
        """Where others open it, as long as this object lives."""

    def lock(self) -> bool:
        """Keep readers that lock it out until `unlock`; False where one has it now."""
        return _locked(self._handle, fcntl.LOCK_EX)

    def unlock(self) -> None:
        fcntl.flock(self._handle, fcntl.LOCK_UN)

    def __del__(self) -> None:
        with suppress(AttributeError):  # it could not be made
            os.close(self._handle)


def map_locked(path: str) -> tuple[Blob, str] | None:
    """(The bytes of another process's MemoryFile, a path of this process to them); None where that process has locked them.

    As long as the array is held they cannot be locked, and the path leads to them, whatever becomes of the other process.
    Raises OSError where there is none.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # the path may be another file's by now, a pipe's say
    try:
        if not _locked(handle, fcntl.LOCK_SH):
            os.close(handle)
            return None
        mapping = mmap.mmap(handle, 0, prot=mmap.PROT_READ)
    except BaseException as error:
        os.close(handle)
        if isinstance(error, ValueError):
            raise OSError(f"{path} cannot be mapped: {error}") from error
        raise
    weakref.finalize(mapping, os.close, handle)
    return np.frombuffer(mapping, dtype=np.uint8), _path_of(handle)


def who_sees() -> str:
    """What processes have in common that can open each other's paths: the machine since its start, and the namespace of process ids."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _path_of(handle: int) -> str:
    return f"/proc/{os.getpid()}/fd/{handle}"


def _locked(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""The file in which weights go to vLLM's worker: in memory where there is room, and without a name.

A policy of 7B parameters is 14 GB. Whoever is killed while it is read, the kernel frees it with the last process that has it open.
"""

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from actors.weights.offer import Blob

_SHARED_MEMORY = Path("/dev/shm")
_SPARE_BYTES = 2**24


def write_weights(blob: Blob) -> IO[bytes]:
    """An open file with the bytes; they are gone when it is closed everywhere. Blocks."""
    with ExitStack() as unless_written:
        file = unless_written.enter_context(tempfile.TemporaryFile(dir=_folder(blob.nbytes)))
        file.write(blob.data)
        file.flush()
        unless_written.pop_all()
    return file


def path_of(file: IO[bytes]) -> str:
    """Where other processes of this user on this machine open it, as long as this one has it open."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


def _folder(size: int) -> Path:
    """Shared memory where it has room: containers often have 64 MB of it."""
    if _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free > size + _SPARE_BYTES:
        return _SHARED_MEMORY
    return Path(tempfile.gettempdir())

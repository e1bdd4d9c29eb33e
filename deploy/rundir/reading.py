"""Files of a run directory, whoever wrote them: opened only if they are files, and what is wrong with them in one line."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

Stamp = tuple[int, int, int]
"""Inode, bytes and nanosecond of the last change: the same while a file is the same."""
NO_FILE: Stamp = (0, 0, 0)
_MOST_CHARS = 200


class NoFileError(OSError):
    """What stands there is no file."""


def open_file(path: Path) -> BinaryIO:
    """For reading. Raises OSError, also for what is no file: a named pipe is waited for, and a device never ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NoFileError(0, "is no file", str(path))
    return os.fdopen(descriptor, "rb")


def stamp_of(path: Path) -> Stamp:
    """Of a file; `NO_FILE` where there is none, or none that can be looked at."""
    try:
        found = path.stat()
    except OSError:
        return NO_FILE
    return found.st_ino, found.st_size, found.st_mtime_ns


def reason(error: Exception) -> str:
    """Why something of a run cannot be read, in one line that names the file where the error does."""
    if isinstance(error, OSError) and error.filename is not None:
        sentence = f"{Path(os.fsdecode(error.filename)).name}: {error.strerror}"
    elif isinstance(error, ValueError) and type(error).__module__.startswith("deploy."):
        sentence = str(error)
    else:
        sentence = f"{type(error).__name__}: {error}"
    sentence = " ".join(sentence.split())
    return sentence if len(sentence) <= _MOST_CHARS else f"{sentence[: _MOST_CHARS - 1]}…"

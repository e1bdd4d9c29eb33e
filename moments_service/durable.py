"""How everything that must last is written: whole or not at all, on the disk when the call returns, with a checksum.

A file or directory is made under a temporary name beside its place, synchronised, renamed, and its place synchronised. A kill or a
power cut at any moment leaves what was there before, or what was to come.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

CHECKSUMS = "checksums.json"
"""In a directory: blake2b of each of its files, by path."""
_NEW, _OLD = ".partial", ".replaced"
_READERS = min(8, os.cpu_count() or 1)
"""Files whose checksums are made at once: a core does .7 GB a second, and a disk often more."""


class DamagedFileError(ValueError):
    """A file is not what was written: the message names it, and how it differs."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file in place of `path`."""
    _write(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file in place of `path`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write strict JSON in place of `path`. Raises ValueError for a number that JSON does not have."""
    write_text(path, strict_json(value, indent))


def strict_json(value: Any, indent: int | None = None, ascii_only: bool = False) -> str:
    """JSON as the standard has it; in ASCII for a stream whose encoding nobody knows. Raises ValueError for NaN and infinities."""
    return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=ascii_only)


def write_tensors(path: Path, arrays: Mapping[str, npt.NDArray[Any]], about: Mapping[str, str]) -> None:
    """Write a safetensors file in place of `path`. about: its metadata."""
    write_bytes(path, save({name: np.asarray(array, order="C") for name, array in arrays.items()}, dict(about)))


def append_line(path: Path, line: bytes) -> None:
    """Add one line to a log: one call to the system, and on the disk when it returns. Only for the one who writes that log.

    What a crash left of a line that was never whole is cut off first. Raises OSError where it cannot be written, and nothing of it
    is left then: a disk may have room for the half of it.
    """
    new = not path.exists()
    with path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            end = file.truncate(path.read_bytes().rfind(b"\n") + 1)
        data = line + b"\n"
        try:
            if (written := os.write(file.fileno(), data)) < len(data):
                raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes of a line fit", str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise
    if new:
        _sync_directory(path.parent)


def put_file(partial: Path, path: Path) -> None:
    """Give a finished file its name, durably; whoever reads what stood there before goes on reading that."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_directory(path.parent)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """An empty directory to fill; it stands at `path`, in place of what was there, once the block is left without an error.

    Other processes may write into it too. `checksums.json` is added. What an earlier, killed attempt left is removed.
    """
    partial = path.with_name(path.name + _NEW)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        put_directory(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def put_directory(partial: Path, path: Path) -> None:
    """Give a directory that was filled, beside `path`, its checksums and its name. What was there before is dropped after that."""
    settle(path)
    seal_directory(partial)
    old = path.with_name(path.name + _OLD)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    _sync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def settle(path: Path) -> None:
    """Put back what a kill between the two renames of `put_directory` left beside its place."""
    old = path.with_name(path.name + _OLD)
    if not old.exists():
        return
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(path)
        _sync_directory(path.parent)


def settle_all(parent: Path) -> None:
    """Settle every directory in `parent`. Only while nobody writes there."""
    for old in parent.glob(f"*{_OLD}"):
        settle(old.with_name(old.name.removesuffix(_OLD)))


def seal_directory(directory: Path) -> None:
    """Synchronise every file of a directory and write down their checksums."""

    def sealed(file: Path) -> tuple[str, str]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            return file.relative_to(directory).as_posix(), _digest(opened)

    with ThreadPoolExecutor(_READERS) as pool:
        sums = dict(pool.map(sealed, _files(directory)))
    write_json(directory / CHECKSUMS, sums, indent=1)
    for inner in (directory, *(path for path in directory.rglob("*") if path.is_dir())):
        _sync_directory(inner)


def verify_directory(directory: Path) -> None:
    """Raise DamagedFileError for the first file that is missing, damaged or not from here."""
    try:
        sums = json.loads((directory / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{directory / CHECKSUMS}: {error}") from None
    if not isinstance(sums, dict):
        raise DamagedFileError(f"{directory / CHECKSUMS}: it holds no checksums")
    present = {file.relative_to(directory).as_posix(): file for file in _files(directory)}

    def problem(name: str) -> str | None:
        if name not in present:
            return f"{directory / name} is missing"
        try:
            with present[name].open("rb") as opened:
                whole = _digest(opened) == sums[name]
        except OSError as error:  # a sector that the disk cannot read any more
            return f"{directory / name} cannot be read: {error.strerror}"
        return None if whole else f"{directory / name} is damaged: its checksum is not the one that was written"

    with ThreadPoolExecutor(_READERS) as pool:
        for found in pool.map(problem, sums):
            if found is not None:
                raise DamagedFileError(found)
    if strangers := sorted(present.keys() - sums.keys()):
        raise DamagedFileError(f"{directory / strangers[0]} does not belong there: checksums.json does not know it")


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / CHECKSUMS)


def _digest(file: BufferedReader) -> str:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _write(path: Path, fill: Callable[[BinaryIO], Any]) -> None:
    partial = path.with_name(path.name + _NEW)
    with partial.open("wb") as file:
        fill(file)
    put_file(partial, path)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

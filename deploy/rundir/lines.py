"""JSON lines: how the logs of a run directory are written and read. One object a line; a line is whole or it is not there."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from deploy.rundir.reading import open_file
from moments_service.durable import append_line

LEFT_FROM = "left_from"
"""The one key of a line that a resume writes: rows above it, of this step or later ones, are of the history that it left."""
_MOST_OBJECT_BYTES = 2**28
"""Of a file that is one object. Moments of a million clusters are a fifth of that."""

# NumPy's numbers are written like Python's.
_encoder = msgspec.json.Encoder(enc_hook=lambda value: value.item())
_decoder = msgspec.json.Decoder()


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one line. Numbers that JSON does not have become null."""
    append_line(path, _encoder.encode(row))


def read(path: Path) -> list[dict[str, Any]]:
    """Every line that holds an object; none where there is no file. Raises OSError where it is no file."""
    try:
        with open_file(path) as file:
            return list(objects(file.read().splitlines()))
    except FileNotFoundError:
        return []


def tail(path: Path, most_bytes: int) -> list[dict[str, Any]]:
    """Objects of the whole lines in the last `most_bytes` of a file; none where there is no file. Raises as `read`."""
    try:
        with open_file(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - most_bytes))
            # The first line of the tail may be cut, the last not yet be whole.
            return list(objects(file.read(most_bytes).rpartition(b"\n")[0].splitlines()))
    except FileNotFoundError:
        return []


def head(path: Path, most_bytes: int) -> list[dict[str, Any]]:
    """The same of the first `most_bytes`."""
    try:
        with open_file(path) as file:
            return list(objects(file.read(most_bytes).rpartition(b"\n")[0].splitlines()))
    except FileNotFoundError:
        return []


def objects(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Of JSON lines those that hold an object."""
    for line in lines:
        if (row := parsed(line)) is not None:
            yield row


def parsed(line: bytes) -> dict[str, Any] | None:
    """The object of one line; None where it holds none: half a line, or something else."""
    try:
        row = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; empty where there is no file, or it holds something else."""
    try:
        with open_file(path) as file:
            return parsed(file.read(_MOST_OBJECT_BYTES)) or {}
    except OSError:
        return {}


def leave(path: Path, first: int) -> None:
    """The run goes on without what it wrote of step `first` and later ones; nothing is said where there is none of that."""
    if any(_is_of(row, first) for row in standing(read(path))):
        append(path, {LEFT_FROM: first})


def standing(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, without those that a resume has left by `leave`."""
    found: list[dict[str, Any]] = []
    for row in rows:
        if type(first := row.get(LEFT_FROM)) is int:
            found = [other for other in found if not _is_of(other, first)]
        else:
            found.append(row)
    return found


def _is_of(row: dict[str, Any], first: int) -> bool:
    return type(step := row.get("step")) is int and step >= first


def lineage(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where a resumed run writes a step (and split, if rows have one) again, the earlier row and those of all later steps go: the
    run stands on what is left. Rows without a step are none."""
    found: list[dict[str, Any]] = []
    for row in standing(rows):
        if type(step := row.get("step")) is not int:
            continue
        while found and found[-1]["step"] > step:
            found.pop()
        place = len(found)
        while place and found[place - 1]["step"] == step:
            place -= 1
        found[place:] = [*(other for other in found[place:] if other.get("split") != row.get("split")), row]
    return found

"""Rows of a file with one JSON object a line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from actors.prompts.options import JsonlSource


def rows(source: JsonlSource, path: Path) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    """Every line that is not blank."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                yield where, _row(line)
            except ValueError as error:
                yield where, error


def _row(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} is {line[error.start]:#04x}); convert the file") from None
    try:
        row = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("its JSON is nested too deep") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        again = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {again!r} stands twice in one object; which of them counts?")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"not JSON: {name} is no number there")

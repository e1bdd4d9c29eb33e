"""What `bvblend eval` wrote into a run's directory. Whoever may write there may have written anything: no name is made a path."""

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from deploy.rundir.layout import RunDirectory

MOST_SHOWN = 40
MOST_BYTES = 64 * 2**20
"""Of a file that is looked into; it holds every verdict."""


class NoEvaluationError(LookupError):
    """There is no evaluation of that name."""


class _Measure(msgspec.Struct):
    mean: float
    prompts: int
    exact_low: float | None = None
    exact_high: float | None = None


class _Result(msgspec.Struct):
    """The beginning of what `write_result` writes."""

    policy: str
    of: str
    samples: int
    unscored: int
    measures: dict[str, _Measure]
    step: int | None = None


def new_place(run: RunDirectory, of: str) -> Path | None:
    """Where the next evaluation of a run is written, in a directory that is there; None where this user may not write.

    of: which prompts, as a file's name can say it.
    """
    if not os.access(run.evaluated if run.evaluated.exists() else run.path, os.W_OK):
        return None
    run.evaluated.mkdir(exist_ok=True)
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{''.join(char if char.isalnum() else '_' for char in of)[:80]}"
    names = (f"{stem}{suffix}.json" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(path for name in names if not (path := run.evaluated / name).exists())


def evaluations_of(run: RunDirectory) -> list[dict[str, Any]]:
    """Its evaluations, newest first, at most `MOST_SHOWN`; those that hold something else are left out."""
    files = sorted(_files(run, ".json").items(), key=lambda item: (item[1].st_mtime, item[0]), reverse=True)
    pictures = _files(run, ".png")
    found: list[dict[str, Any]] = []
    for name, stat in files[:MOST_SHOWN]:
        result = _read(run.evaluated / name) if stat.st_size <= MOST_BYTES else None
        if result is None:
            continue
        picture = f"{name.removesuffix('.json')}.png"
        found.append(
            {"file": name, "at": stat.st_mtime, "picture": picture if picture in pictures else None}
            | msgspec.to_builtins(result)
        )
    return found


def evaluated_file(run: RunDirectory, name: str, suffix: str) -> Path:
    """The file of that name among its evaluations. Raises NoEvaluationError."""
    if name not in _files(run, suffix):
        raise NoEvaluationError(f"no evaluation of that name in {run.path.name}")
    return run.evaluated / name


def _files(run: RunDirectory, suffix: str) -> dict[str, os.stat_result]:
    """Plain files there by name; links are not followed."""
    try:
        with os.scandir(run.evaluated) as entries:
            return {
                entry.name: entry.stat(follow_symlinks=False)
                for entry in entries
                if entry.name.endswith(suffix) and entry.is_file(follow_symlinks=False)
            }
    except OSError:
        return {}


def _read(path: Path) -> _Result | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Result)
    except (OSError, msgspec.DecodeError, RecursionError):
        return None

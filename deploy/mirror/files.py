"""What of a run directory goes to its mirror, when, and in which order."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from deploy.rundir.layout import RunDirectory
from deploy.rundir.owner import OWNER_FILES
from moments_service.ledger.parts import is_finished, is_part
from moments_service.ledger.schema import open_for_reading

CHECKPOINTS = "checkpoints"
COMPLETE = "run.json"
"""The file of a checkpoint that is uploaded last and removed first: where it is, the others are."""

Bundle = list[Path]
"""Files that belong together, in the order of their upload. Only a checkpoint has more than one."""
Signature = tuple[int, int]
"""Size of a file in bytes, and when it was last changed, in nanoseconds."""


def bundles(run: RunDirectory, at_end: bool) -> list[Bundle]:
    """What is whole by now; at the end, when nobody writes any more, that is everything."""
    alone = [run.config, *_files(run.moments), *_files(run.tokens)] if not at_end else _files(run.path)
    steps = run.checkpoint_steps() if at_end else run.checkpoint_steps()[-1:]
    checkpoints = [
        sorted(_files(run.checkpoint(step)), key=lambda path: (path.name == COMPLETE, path)) for step in steps
    ]
    return [
        *(
            [path]
            for path in alone
            if not path.is_relative_to(run.checkpoints) and (at_end or not _is_written_to(path))
        ),
        *(bundle for bundle in checkpoints if bundle),
    ]


def growing(run: RunDirectory) -> list[Bundle]:
    """Files that get a line with every step."""
    return [[path] for path in (run.metrics, run.evaluations, run.alarms) if path.exists()]


def signature(path: Path) -> Signature | None:
    """What changes when a file changes; None where there is none."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_size, about.st_mtime_ns


def readable(path: Path, scratch: Path) -> Path:
    """A file with everything in it that `path` stands for: of a part of the ledger that has a log beside it, a copy."""
    if not is_part(path) or is_finished(path):
        return path
    copy = scratch / path.name
    source, target = open_for_reading(path), sqlite3.connect(copy)
    try:
        source.backup(target)
        target.execute("PRAGMA journal_mode=DELETE")
    finally:
        source.close()
        target.close()
    return copy


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in _walk(directory) if not path.name.endswith(("-wal", "-shm", "-journal")))


def _walk(directory: Path) -> Iterator[Path]:
    for parent, inner, names in os.walk(directory):
        inner[:] = [name for name in inner if "partial" not in name]
        yield from (Path(parent, name) for name in names if ".partial" not in name and name not in OWNER_FILES)


def _is_written_to(path: Path) -> bool:
    return is_part(path) and (path == max(filter(is_part, path.parent.iterdir())) or not is_finished(path))

"""The files that a ledger is cut into: their names, how one begins, and how a full one becomes a whole, read-only file.

`ledger-000000.sqlite` and so on stand in one directory; the newest is open, all others are closed and never get another row.
"""

import re
import sqlite3
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from moments_service.durable import put_file
from moments_service.ledger.schema import HEADER_ONLY, create_indexes, create_tables, is_finished, open_for_reading
from moments_service.ledger.seals import LedgerDamagedError, Seal, write_transaction

_PREFIX, _SUFFIX = "ledger-", ".sqlite"
_PART = re.compile(rf"{_PREFIX}[0-9]{{6,}}{re.escape(_SUFFIX)}")
"""A copy that somebody put beside a part is none."""


@dataclass(frozen=True, slots=True)
class LedgerLimits:
    """How large a ledger's files may get."""

    part_bytes: int = 64 * 2**20
    """A part that has grown past this is closed. It is searched without indexes until then: 100,000 groups, some 10 ms."""
    texts_bytes: int = 8 * 2**30
    """The newest closed parts keep their transcripts as long as together they are no larger than this."""


DEFAULT_LIMITS = LedgerLimits()


def part_path(directory: Path, number: int) -> Path:
    return directory / f"{_PREFIX}{number:06d}{_SUFFIX}"


def part_paths(directory: Path) -> list[Path]:
    """Every part, oldest first; the last one is open. Raises LedgerDamagedError if one between them is missing."""
    found = sorted(path for path in directory.glob(f"{_PREFIX}*{_SUFFIX}") if is_part(path))
    for number, path in enumerate(found):
        if path != (expected := part_path(directory, number)):
            raise LedgerDamagedError(f"{expected} is missing, and {path.name} is there; restore the file from a copy")
    return found


def is_part(path: Path) -> bool:
    """Whether a file is a part of a ledger, by its name."""
    return _PART.fullmatch(path.name) is not None


def begin_part(directory: Path, number: int, last: Seal) -> tuple[Path, Seal]:
    """Make a part, whole or not at all; its first transaction says which one it follows. Returns its path and that one."""
    path = part_path(directory, number)
    partial = fresh_partial(path)
    connection = sqlite3.connect(partial)
    try:
        create_tables(connection)
        first = write_transaction(connection, last.number + 1, {"parts": [(number, last.number, last.checksum)]})
    finally:
        connection.close()
    put_file(partial, path)
    return path, first


def finish_part(path: Path) -> bool:
    """Make a closed part one whole file that needs no log beside it. False while another program reads it: try again later."""
    if is_finished(path):
        return True
    connection = sqlite3.connect(path, timeout=0)
    try:
        create_indexes(connection)
        connection.execute(HEADER_ONLY)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return False
        raise
    finally:
        connection.close()
    path.chmod(0o444)
    return True


def fresh_partial(path: Path) -> Path:
    """The name under which a part is written before it has its own; nothing stands there, nor a journal of it."""
    remove_partials(path.parent, path.stem)
    return path.with_suffix(".partial")


def remove_partials(directory: Path, stem: str = f"{_PREFIX}*") -> None:
    """Remove what a writer that was killed has left unfinished. Only for who writes."""
    for left in directory.glob(f"{stem}.partial*"):
        left.unlink()


class PartConnections:
    """Read-only connections, at most one a part; of many, those used last stay open."""

    def __init__(self, most: int = 32, deadline: float | None = None) -> None:
        """deadline: as of `open_for_reading`."""
        self._most = most
        self._deadline = deadline
        self._open: OrderedDict[Path, sqlite3.Connection] = OrderedDict()

    def of(self, path: Path) -> sqlite3.Connection:
        if path not in self._open:
            self._open[path] = open_for_reading(path, self._deadline)
            if len(self._open) > self._most:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        return self._open[path]

    def forget(self, path: Path) -> None:
        """Close the connection to a part, if there is one."""
        if path in self._open:
            self._open.pop(path).close()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

"""The tables of every part of the ledger: what is on the disk, readable with `sqlite3` by anybody while the run goes on.

Rows are only ever added. Every transaction is sealed with the number of its rows and a checksum over them; transcripts have
a checksum of their own, so that they can be dropped and all the rest still proves to be what was written.

parts        one row: which part this is, and the last seal of the part before it
groups       one row a group, when it was submitted: `size` completions, `failed` of them without a reward, their mean `reward`
             and `tokens` (those that are trained on)
transcripts  the texts of some groups
reward_parts what the rewards of a group are made of, where its verifier says; one JSON object a completion, null for none
losses       groups whose payload died after they were submitted
folds        what a commit made of each group: its advantages, or NULL for a group that was not trained on; beside them all
             that groups are searched by (`outcome` as in outcomes.py, `signal`: whether it pushed the policy, `rescued`:
             it did, though GRPO would have left it alone), so that no search needs a join, not even over several parts
commits      one row a policy step that became history
incarnations one row a start of the run; `after_step` is the last step of the earlier incarnations that it goes on from
configs      one row a start of the run: the configuration that it ran with, as JSON
seals        one row a transaction; `texts` is the checksum of its transcripts, '' for none, or 'dropped'

Parts of older versions have no `configs` and no `reward_parts`; parts of rewards then stand beside the texts, in `transcripts`.

A part gets its indexes when it is closed: built at once they cost a twentieth of what they cost row by row, and the open part
is small enough to be searched without. Within a part, and from part to part, later commits stand behind earlier ones.
"""

import hashlib
import itertools
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

Row = tuple[Any, ...]

_encode = msgspec.json.encode
_encoder = msgspec.json.Encoder()
_LOOKS_AT_THE_CLOCK = 100_000
"""Steps of SQLite's machine between two looks, about a millisecond."""
_CHUNKS = (256, 32, 4, 1)
"""Rows a statement; a few sizes only, so that SQLite's compiled statements are used again."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "parts": ("part INTEGER NOT NULL", "last_seal INTEGER NOT NULL", "checksum TEXT NOT NULL"),
    "groups": (
        "incarnation INTEGER NOT NULL", "sequence INTEGER NOT NULL", "group_id TEXT NOT NULL", "prompt_id TEXT NOT NULL",
        "source TEXT NOT NULL", "cluster INTEGER NOT NULL", "lost INTEGER NOT NULL", "size INTEGER NOT NULL",
        "failed INTEGER NOT NULL", "reward REAL", "tokens INTEGER NOT NULL", "rewards TEXT NOT NULL", "errors TEXT",
        "lengths TEXT NOT NULL", "truncated TEXT NOT NULL", "turns TEXT NOT NULL", "oldest_version INTEGER NOT NULL",
        "newest_version INTEGER NOT NULL",
    ),
    "transcripts": (
        "incarnation INTEGER NOT NULL", "sequence INTEGER NOT NULL", "group_id TEXT NOT NULL", "prompt TEXT NOT NULL",
        "completions TEXT NOT NULL", "reward_parts TEXT",
    ),
    "reward_parts": (
        "incarnation INTEGER NOT NULL", "sequence INTEGER NOT NULL", "group_id TEXT NOT NULL", "parts TEXT NOT NULL",
    ),
    "losses": ("incarnation INTEGER NOT NULL", "sequence INTEGER NOT NULL", "group_id TEXT NOT NULL"),
    "folds": (
        "incarnation INTEGER NOT NULL", "step INTEGER NOT NULL", "sequence INTEGER NOT NULL", "group_id TEXT NOT NULL",
        "source TEXT NOT NULL", "cluster INTEGER NOT NULL", "outcome TEXT NOT NULL", "reward REAL", "signal INTEGER NOT NULL",
        "rescued INTEGER NOT NULL", "weight REAL", "baseline REAL", "scale REAL", "advantages TEXT",
    ),
    "commits": (
        "incarnation INTEGER NOT NULL", "step INTEGER NOT NULL", "policy_version INTEGER NOT NULL", "kl REAL",
        "log_ratio REAL",
    ),
    "incarnations": ("incarnation INTEGER NOT NULL", "after_step INTEGER NOT NULL"),
    "configs": ("incarnation INTEGER NOT NULL", "config TEXT NOT NULL"),
}  # fmt: skip
"""Every sealed table. The last column of each is `seal`, the transaction that wrote the row."""

KEYS = {
    "parts": "part",
    # Beginning with the place in the feed, which only grows: new rows stand together at the end of the tree.
    "groups": "incarnation, sequence, group_id",
    "transcripts": "incarnation, sequence, group_id",
    "reward_parts": "incarnation, sequence, group_id",
    "losses": "incarnation, sequence, group_id",
    "folds": "incarnation, step, sequence, group_id",
    "commits": "incarnation, step",
    "incarnations": "incarnation",
    "configs": "incarnation",
}
"""Always the first columns, so that sorted rows are in the order of their key."""

_PLACE = "incarnation, step, sequence, group_id"
INDEXES = {
    "groups_by_id": "groups (group_id)",
    "folds_by_id": "folds (group_id)",
    "folds_by_cluster": f"folds (cluster, {_PLACE}, source, outcome, rescued, reward, weight)",
    "folds_by_source": f"folds (source, {_PLACE}, cluster, outcome, rescued)",
    "folds_by_outcome": f"folds (outcome, {_PLACE}, cluster, source)",
    "folds_rescued": f"folds (rescued, {_PLACE}, cluster, source) WHERE rescued",
}
"""Of a closed part. What one finds comes in order of step and feed, and can be counted without a look at the rows."""

SEALS = (
    "CREATE TABLE IF NOT EXISTS seals (seal INTEGER PRIMARY KEY, number_of_rows INTEGER NOT NULL, checksum TEXT NOT NULL, "
    "texts TEXT NOT NULL)"
)
HEADER_ONLY = "PRAGMA journal_mode=MEMORY"
"""How a file is taken into and out of WAL mode. With a journal on the disk, what a kill leaves of it would shut out whoever may
only read; and what changes stands in the file's first sector, which a disk writes whole or not at all."""
TEXTS = "transcripts"
"""The one table whose rows may be dropped."""
DROPPED = "dropped"
"""What stands in `seals.texts` where they were."""


def create_tables(connection: sqlite3.Connection) -> None:
    """Make the tables of a part; in one that an older version began, those that it did not know."""
    for table, columns in COLUMNS.items():
        body = ", ".join((*columns, "seal INTEGER NOT NULL", f"PRIMARY KEY ({KEYS[table]})"))
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({body}) WITHOUT ROWID")
    connection.execute(SEALS)


def tables_of(connection: sqlite3.Connection, schema: str = "main") -> list[str]:
    """Which of the sealed tables a part has: one that an older version closed may lack some."""
    present = {name for (name,) in connection.execute(f"SELECT name FROM {schema}.sqlite_master WHERE type = 'table'")}
    return [table for table in COLUMNS if table in present]


def create_indexes(connection: sqlite3.Connection) -> None:
    """Make what a closed part is searched by."""
    for name, columns in INDEXES.items():
        connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {columns}")


def drop_indexes(connection: sqlite3.Connection) -> None:
    """Make a part that was closed cheap to write to again."""
    for name in INDEXES:
        connection.execute(f"DROP INDEX IF EXISTS {name}")


def open_for_writing(path: Path) -> sqlite3.Connection:
    """A connection to a part whose commits are on the disk when they return, also through a power cut."""
    connection = sqlite3.connect(path, check_same_thread=False)
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        connection.execute(HEADER_ONLY)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def open_for_reading(path: Path, deadline: float | None = None) -> sqlite3.Connection:
    """A connection that cannot change the part. Raises sqlite3.OperationalError where there is no file.

    deadline: by time.monotonic(); a statement that goes on past it ends with SQLITE_INTERRUPT.
    """
    if not path.is_file():  # SQLite would wait for the other end of a pipe
        raise sqlite3.OperationalError("it is no file")
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    if deadline is not None:
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _LOOKS_AT_THE_CLOCK)
    return connection


def is_finished(path: Path) -> bool:
    """Whether a part is one whole file that needs no log beside it."""
    with path.open("rb") as file:
        file.seek(18)
        # https://www.sqlite.org/fileformat2.html#file_format_version_numbers: 1 and 1 without a write-ahead log
        return file.read(2) == b"\x01\x01"


def insert(connection: sqlite3.Connection, table: str, rows: Sequence[Row]) -> None:
    """Insert many rows in few statements.

    Python's lock is free while SQLite works on a statement, and taken again between two of them; with one statement a row,
    a busy event loop beside this thread would make every row wait.
    """
    done = 0
    for size in _CHUNKS:
        row = f"({','.join('?' * (len(COLUMNS[table]) + 1))})"
        statement = f"INSERT INTO {table} VALUES {','.join([row] * size)}"
        while len(rows) - done >= size:
            connection.execute(statement, list(itertools.chain.from_iterable(rows[done : done + size])))
            done += size


class TransactionHash:
    """Checksums over the rows of one transaction. Each table's rows are added in the order of its key."""

    def __init__(self) -> None:
        self._rows = 0
        self._tables: dict[str, Any] = {}

    def add(self, table: str, rows: Iterable[Row]) -> None:
        """Add rows without their seal."""
        digest = self._tables.setdefault(table, hashlib.blake2b(digest_size=16))
        for row in rows:
            digest.update(_encode(row))
            self._rows += table != TEXTS

    def add_all(self, table: str, rows: Sequence[Row]) -> None:
        """The same for many rows at once."""
        digest = self._tables.setdefault(table, hashlib.blake2b(digest_size=16))
        # Strings in JSON hold no bare newline, so those taken out are the ones between rows.
        digest.update(_encoder.encode_lines(rows).replace(b"\n", b""))
        self._rows += len(rows) if table != TEXTS else 0

    def seal(self) -> tuple[int, str, str]:
        """Number of rows and checksum of all but the transcripts, and the checksum of those; '' where there are none."""
        whole = hashlib.blake2b(digest_size=16)
        for table in COLUMNS:
            if table in self._tables and table != TEXTS:
                whole.update(table.encode() + self._tables[table].digest())
        texts = self._tables.get(TEXTS)
        return self._rows, whole.hexdigest(), "" if texts is None else texts.hexdigest()


def json_rows(values: npt.NDArray[Any], sizes: npt.NDArray[np.int64]) -> list[str]:
    """Each row of a [N, G] array as a JSON list of its first `size` values; null for NaN."""
    if len(values) and (sizes == values.shape[1]).all() and values.shape[1]:
        whole = _encode(values.tolist()).decode()
        return [f"[{row}]" for row in whole[2:-2].split("],[")]
    return [_encode(row[:size]).decode() for row, size in zip(values.tolist(), sizes.tolist(), strict=True)]


class RepeatedRows:
    """`json_rows` for a column in which the same rows come again and again: each is written out once and kept."""

    def __init__(self, most: int = 1 << 16) -> None:
        """most: rows that are kept."""
        self._texts: dict[bytes, str] = {}
        self._most = most

    def json(self, values: npt.NDArray[Any], sizes: npt.NDArray[np.int64]) -> list[str]:
        """The same as `json_rows(values, sizes)`."""
        if not values.size or (sizes != values.shape[1]).any():
            return json_rows(values, sizes)
        width = values.dtype.itemsize * values.shape[1]
        data = np.ascontiguousarray(values).tobytes()
        keys = [data[start : start + width] for start in range(0, len(data), width)]
        known = self._texts
        new = [row for row, key in enumerate(keys) if key not in known]
        if new:
            if len(known) + len(new) > self._most:
                known.clear()
                new = list(range(len(keys)))
            known.update(zip([keys[row] for row in new], json_rows(values[new], sizes[new]), strict=True))
        return [known[key] for key in keys]

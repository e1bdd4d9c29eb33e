"""Whether a ledger is whole: every sealed transaction with all of its rows, unchanged."""

import sqlite3
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from moments_service.ledger.schema import COLUMNS, KEYS, TransactionHash
from moments_service.ledger.wal import inspect_wal


class LedgerDamagedError(RuntimeError):
    """The ledger cannot be trusted; the message names the file and the place."""


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """What a check found."""

    seals: int
    """Transactions that are whole."""
    rows: int
    cut: int = 0
    """Transactions at the end that were not whole, and are gone now."""


def check_wal(path: Path) -> int:
    """Frames of an unfinished write that SQLite will cut off. Call before the ledger at `path` is opened.

    Raises LedgerDamagedError if finished transactions stand behind a damaged frame.
    """
    report = inspect_wal(wal := path.with_name(path.name + "-wal"))
    if report.damaged_frame is not None:
        raise LedgerDamagedError(
            f"{wal} is damaged at frame {report.damaged_frame}, and finished transactions follow it. Restore the file from a "
            f"copy; to go on without what follows, cut it after frame {report.good_frames}"
        )
    return report.torn_frames


def verify(connection: sqlite3.Connection, path: Path, cut_end: bool = False) -> LedgerReport:
    """Compare every row with its transaction's seal.

    cut_end: remove transactions at the very end that are not whole. Raises LedgerDamagedError for damage anywhere else.
    """
    try:
        found: dict[int, TransactionHash] = defaultdict(TransactionHash)
        for table in COLUMNS:
            for *row, seal in connection.execute(f"SELECT * FROM {table} ORDER BY {KEYS[table]}"):
                found[seal].add(table, [tuple(row)])
        sealed = {seal: (rows, digest) for seal, rows, digest in connection.execute("SELECT * FROM seals")}
    except sqlite3.DatabaseError as error:
        raise LedgerDamagedError(f"{path} is damaged: {error}; restore the file from a copy") from None
    seals = range(min(sealed, default=0), max([*sealed, *found], default=-1) + 1)
    whole = {seal: sealed.get(seal) == (found[seal].rows, found[seal].hexdigest()) for seal in seals}
    damaged = [seal for seal, good in whole.items() if not good]
    at_the_end = [seal for seal in damaged if not any(whole[later] for later in range(seal, seals.stop))]
    if len(at_the_end) < len(damaged) or (damaged and not cut_end):
        raise LedgerDamagedError(f"{path} is damaged in transaction {damaged[0]}: {_place(connection, damaged[0])}")
    if damaged:
        with connection:
            for table in (*COLUMNS, "seals"):
                connection.execute(f"DELETE FROM {table} WHERE seal >= ?", (damaged[0],))
    rows = sum(hashed.rows for seal, hashed in found.items() if whole[seal])
    return LedgerReport(seals=len(seals) - len(damaged), rows=rows, cut=len(damaged))


def _place(connection: sqlite3.Connection, seal: int) -> str:
    """What a person needs to find the damaged rows."""
    if connection.execute("SELECT 1 FROM seals WHERE seal = ?", (seal,)).fetchone() is None:
        return "its seal is missing"
    groups = connection.execute("SELECT group_id FROM groups WHERE seal = ? LIMIT 3", (seal,)).fetchall()
    steps = connection.execute("SELECT step FROM commits WHERE seal = ?", (seal,)).fetchall()
    holds = [f"groups {', '.join(group_id for (group_id,) in groups)}"] if groups else []
    holds += [f"the commit of step {step}" for (step,) in steps]
    return f"rows are missing or changed; what is left of it holds {' and '.join(holds) or 'nothing'}"

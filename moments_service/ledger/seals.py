"""Whether a ledger is whole: every part that there was, and in it every sealed transaction with all of its rows, unchanged."""

import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moments_service.ledger.checked import remember_checked, was_checked
from moments_service.ledger.schema import (
    DROPPED,
    KEYS,
    Row,
    TransactionHash,
    insert,
    is_finished,
    open_for_reading,
    open_for_writing,
    tables_of,
)


class LedgerDamagedError(RuntimeError):
    """The ledger cannot be trusted; the message names the file and the place."""


@dataclass(frozen=True, slots=True)
class Seal:
    """The seal of one transaction. Numbers go on from part to part."""

    number: int = -1
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class LedgerEnd:
    """A transaction that was the newest on the disk once: what a later start compares with what it finds."""

    part: int
    seal: int
    checksum: str


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """What a check found."""

    seals: int
    """Transactions that are whole."""
    last: Seal
    """The newest of them."""
    cut: int = 0
    """Transactions at the end that were not whole, and are gone now."""


def write_transaction(connection: sqlite3.Connection, number: int, rows: Mapping[str, list[Row]]) -> Seal:
    """Add rows, by table, under one seal: all of them or none, and on the disk when this returns."""
    hashed = TransactionHash()
    with connection:
        for table, added in rows.items():
            added.sort()
            hashed.add_all(table, added)
            insert(connection, table, [(*row, number) for row in added])
        counted, checksum, texts = hashed.seal()
        connection.execute("INSERT INTO seals VALUES (?, ?, ?, ?)", (number, counted, checksum, texts))
    return Seal(number, checksum)


def check_parts(paths: Sequence[Path], writing: bool = False) -> LedgerReport:
    """Check every part of a ledger, all that there are, oldest first.

    writing: only for who writes; at the very end of the last part, what is not whole is removed, and closed parts whose rows
    were checked at an earlier start are only compared with what they were then. Raises LedgerDamagedError for damage anywhere
    else, and where a part does not begin where the one before it ended.
    """
    last, seals, cut = Seal(), 0, 0
    for number, path in enumerate(paths):
        closed = path != paths[-1]
        try:
            connection = open_for_writing(path) if writing and not closed else open_for_reading(path)
        except sqlite3.DatabaseError as error:
            raise unreadable(path, error) from None
        try:
            if closed or not writing:
                connection.execute("BEGIN")  # all tables as they are at one moment, while others write
            _refuse_other_beginning(connection, path, number, last)
            finished = writing and closed and is_finished(path)
            if finished and was_checked(path):
                found = _known(connection, last)
            else:
                found = verify(connection, path, last, cut_end=writing and not closed)
                if finished:
                    remember_checked(path)
        finally:
            connection.close()
        last, seals, cut = found.last, seals + found.seals, found.cut
    return LedgerReport(seals, last, cut)


def _known(connection: sqlite3.Connection, before: Seal) -> LedgerReport:
    """The report on a part that is known to be whole."""
    number, checksum = connection.execute("SELECT seal, checksum FROM seals ORDER BY seal DESC LIMIT 1").fetchone()
    return LedgerReport(number - before.number, Seal(number, checksum))


def lost_end(directory: Path, paths: Sequence[Path], known: LedgerEnd) -> str | None:
    """What a ledger has lost of what was on its disk once; None where it holds that transaction: then nothing before it is gone.

    paths: its parts from 0 on. Raises LedgerDamagedError where it is another run's.
    """
    if known.part >= len(paths):
        return (
            f"{directory}: part {known.part} of the ledger is missing, and it was there when the checkpoint was written; restore it "
            "from a copy"
        )
    path = paths[known.part]
    connection = open_for_reading(path)
    try:
        found = connection.execute("SELECT checksum FROM seals WHERE seal = ?", (known.seal,)).fetchone()
        newest = connection.execute("SELECT MAX(seal) FROM seals").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise unreadable(path, error) from None
    finally:
        connection.close()
    if found is None:
        return (
            f"{path} ends with transaction {newest}, and number {known.seal} was on the disk when the checkpoint was written: "
            f"the end of the file or its log {path.name}-wal is lost; restore both from a copy"
        )
    if found != (known.checksum,):
        raise LedgerDamagedError(f"{path} is the ledger of another run: its transaction {known.seal} is another one")
    return None


def verify(connection: sqlite3.Connection, path: Path, before: Seal, cut_end: bool = False) -> LedgerReport:
    """Compare every row of one part with its transaction's seal.

    before: the last seal of the part before it.    cut_end: remove transactions at the very end that are not whole. Raises
    LedgerDamagedError for damage anywhere else.
    """
    try:
        found: dict[int, TransactionHash] = defaultdict(TransactionHash)
        for table in tables_of(connection):
            for *row, seal in connection.execute(f"SELECT * FROM {table} ORDER BY {KEYS[table]}"):
                found[seal].add(table, [tuple(row)])
        sealed = {seal: tuple(rest) for seal, *rest in connection.execute("SELECT * FROM seals")}
    except sqlite3.DatabaseError as error:
        raise unreadable(path, error) from None
    first = before.number + 1
    seals = range(min([first, *sealed, *found]), max([first, *sealed, *found]) + 1)
    whole = {seal: _matches(sealed.get(seal), found[seal].seal()) for seal in seals}
    damaged = [seal for seal, good in whole.items() if not good]
    at_the_end = [seal for seal in damaged if not any(whole[later] for later in range(seal, seals.stop))]
    # A part begins with a transaction that was whole before the file had its name: without it nothing here can be trusted.
    if len(at_the_end) < len(damaged) or (damaged and (not cut_end or damaged[0] <= first)):
        raise LedgerDamagedError(f"{path} is damaged in transaction {damaged[0]}: {_place(connection, damaged[0])}")
    if damaged:
        with connection:
            for table in (*tables_of(connection), "seals"):
                connection.execute(f"DELETE FROM {table} WHERE seal >= ?", (damaged[0],))
    newest = seals.stop - 1 - len(damaged)
    return LedgerReport(len(seals) - len(damaged), Seal(newest, str(sealed[newest][1])), len(damaged))


def _matches(sealed: Row | None, found: tuple[int, str, str]) -> bool:
    """Whether rows are those that were sealed; texts may be gone where the seal says so."""
    return sealed is not None and (sealed == found or (sealed == (*found[:2], DROPPED) and not found[2]))


def _refuse_other_beginning(connection: sqlite3.Connection, path: Path, number: int, last: Seal) -> None:
    try:
        begins = connection.execute("SELECT * FROM parts").fetchall()
    except sqlite3.DatabaseError as error:
        raise unreadable(path, error) from None
    if begins != [(number, last.number, last.checksum, last.number + 1)]:
        before = f"where part {number - 1} ends, with transaction {last.number}" if number else "as a first part does"
        raise LedgerDamagedError(
            f"{path} does not begin {before}: it says {begins}. One of the two is another file or an older copy; restore it"
        )


def unreadable(path: Path, error: sqlite3.DatabaseError) -> LedgerDamagedError:
    """What a part is refused with that SQLite cannot make sense of."""
    return LedgerDamagedError(f"{path} is damaged: {error}; restore the file from a copy")


def _place(connection: sqlite3.Connection, seal: int) -> str:
    """What a person needs to find the damaged rows."""
    if connection.execute("SELECT 1 FROM seals WHERE seal = ?", (seal,)).fetchone() is None:
        return "its seal is missing"
    groups = connection.execute("SELECT group_id FROM groups WHERE seal = ? LIMIT 3", (seal,)).fetchall()
    steps = connection.execute("SELECT step FROM commits WHERE seal = ?", (seal,)).fetchall()
    holds = [f"groups {', '.join(group_id for (group_id,) in groups)}"] if groups else []
    holds += [f"the commit of step {step}" for (step,) in steps]
    return f"rows are missing or changed; what is left of it holds {' and '.join(holds) or 'nothing'}"

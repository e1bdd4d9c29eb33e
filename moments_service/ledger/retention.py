"""Which texts a run keeps: closed parts drop their transcripts, oldest first; nothing else is ever dropped."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from moments_service.durable import put_file
from moments_service.ledger.checked import remember_checked
from moments_service.ledger.parts import fresh_partial
from moments_service.ledger.schema import DROPPED, TEXTS, create_indexes, create_tables, open_for_reading, tables_of
from moments_service.ledger.seals import Seal, verify


def holds_texts(path: Path) -> bool:
    """Whether a part has transcripts."""
    connection = open_for_reading(path)
    try:
        return connection.execute(f"SELECT 1 FROM {TEXTS} LIMIT 1").fetchone() is not None
    finally:
        connection.close()


def parts_past(bound: int, with_texts: Sequence[Path]) -> list[Path]:
    """Those parts, oldest first, whose texts must go: the newest whose files together are no larger than `bound` keep theirs.

    with_texts: closed parts that hold texts, oldest first.
    """
    kept = 0
    for keep, path in enumerate(reversed(with_texts)):
        kept += path.stat().st_size
        if kept > bound:
            return list(with_texts[: len(with_texts) - keep])
    return []


def drop_texts(path: Path) -> None:
    """Write a finished part again without its transcripts, and put it in the old one's place when it is whole.

    The seals of all that stays are the ones it was written with. Raises LedgerDamagedError if the part is damaged, and then
    leaves it as it is.
    """
    partial = fresh_partial(path)
    connection = sqlite3.connect(partial, uri=True)
    try:
        # Nobody needs a file that is not finished: no journal, no waiting for the disk before the end.
        connection.execute("PRAGMA journal_mode=OFF")
        connection.execute("PRAGMA synchronous=OFF")
        create_tables(connection)
        connection.execute("ATTACH ? AS whole", (f"{path.resolve().as_uri()}?mode=ro",))
        with connection:
            for table in tables_of(connection, "whole"):
                if table != TEXTS:
                    connection.execute(f"INSERT INTO {table} SELECT * FROM whole.{table}")
            connection.execute(
                "INSERT INTO seals SELECT seal, number_of_rows, checksum, CASE texts WHEN '' THEN '' ELSE ? END "
                "FROM whole.seals",
                (DROPPED,),
            )
        create_indexes(connection)
        ((before,),) = connection.execute("SELECT last_seal FROM parts").fetchall()
        verify(connection, partial, Seal(before))
    finally:
        connection.close()
    partial.chmod(0o444)
    put_file(partial, path)
    remember_checked(path)

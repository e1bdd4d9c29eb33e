"""What the writer of a ledger still does with parts that it closed: look groups up, finish files, drop old texts."""

import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from moments_service.ledger.parts import PartConnections, finish_part
from moments_service.ledger.retention import drop_texts, holds_texts, parts_past
from moments_service.ledger.seals import LedgerDamagedError

logger = logging.getLogger(__name__)


class ClosedParts:
    """The closed parts of a ledger, for its writer.

    `add` and `holds` belong to the event loop, `tidy` to one thread beside it. A lock keeps a look-up from opening the file
    that is being finished: SQLite finishes a file only where nobody else has it open.
    """

    def __init__(self, paths: Sequence[Path], incarnation: int, texts_bytes: int) -> None:
        self._incarnation = incarnation
        self._texts_bytes = texts_bytes
        self._lock = threading.Lock()
        self._connections = PartConnections()
        # Lowest and highest place in the feed of this incarnation's groups in each part, oldest first.
        self._spans: dict[Path, tuple[int, int]] = {}
        # With the connection that wrote them, where it is still open.
        self._unfinished: dict[Path, sqlite3.Connection | None] = {}
        self._without_texts: set[Path] = set()
        for path in paths:
            self.add(path, self._connections.of(path))

    def add(self, path: Path, reader: sqlite3.Connection, writer: sqlite3.Connection | None = None) -> None:
        """Nobody writes to this part any more. reader: any connection to it.    writer: to close when it is finished."""
        query = "SELECT {}(sequence) FROM groups WHERE incarnation = ?"
        low, high = (reader.execute(query.format(end), (self._incarnation,)).fetchone()[0] for end in ("MIN", "MAX"))
        self._spans[path] = (0, -1) if low is None else (low, high)
        self._unfinished[path] = writer

    def holds(self, sequence: int, group_id: str) -> bool:
        """Whether this incarnation's group stands in a closed part."""
        query = "SELECT 1 FROM groups WHERE incarnation = ? AND sequence = ? AND group_id = ?"
        with self._lock:
            return any(
                self._connections.of(path).execute(query, (self._incarnation, sequence, group_id)).fetchone()
                for path, (low, high) in reversed(self._spans.items())
                if low <= sequence <= high
            )

    def tidy(self) -> None:
        """Finish closed parts and drop the texts that are past the bound. What fails is said, and tried again next time."""
        with _failure_said():
            self.finish()
            self._drop_texts()

    def finish(self) -> None:
        """Make every closed part one whole file."""
        for path, writer in list(self._unfinished.items()):
            if writer is not None:
                writer.close()
                self._unfinished[path] = None
            with self._lock:
                self._connections.forget(path)
                finished = finish_part(path)
            if finished:
                del self._unfinished[path]
            else:
                logger.warning("%s is open in another program; it becomes one whole file later", path)

    def close(self) -> None:
        """Finish what can be finished, drop what is past the bound, and close all connections. Only where `tidy` does not run."""
        self._connections.close()
        self.finish()
        with _failure_said():  # parts that were closed while `tidy` ran are still to be looked at
            self._drop_texts()

    def _drop_texts(self) -> None:
        finished = [path for path in list(self._spans) if path not in self._unfinished]
        with_texts = []
        for path in finished:
            if path not in self._without_texts and holds_texts(path):
                with_texts.append(path)
            else:
                self._without_texts.add(path)
        for path in parts_past(self._texts_bytes, with_texts):
            drop_texts(path)
            with self._lock:
                self._connections.forget(path)  # it reads the old file, which takes up the disk until then
            self._without_texts.add(path)
            logger.info("%s: texts dropped by retention", path)


@contextmanager
def _failure_said() -> Iterator[None]:
    """Nothing that fails within ends a run: the parts are whole as they are."""
    try:
        yield
    except (OSError, sqlite3.Error, LedgerDamagedError) as error:
        logger.error("closed parts of the ledger stay as they are until the next one is closed: %s", error)

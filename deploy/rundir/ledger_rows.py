"""The questions that the dashboard asks a ledger. Each goes by a key that the ledger has, so that its size does not matter."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moments_service.ledger import FoldedGroup, LedgerReader
from moments_service.messages.groups import Transcript

_OLD_FILE = "ledger.sqlite"
"""What the ledger was before it came in parts."""
_KEYS_A_QUERY = 500


class OldLedgerError(RuntimeError):
    """The ledger was written by an older version, whose tables are others."""


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One start of a run."""

    number: int
    after_step: int
    """The last step of the earlier ones that it goes on from; -1 for none."""
    first_step: int | None
    """Of its commits; None while it has none."""
    last_step: int | None


class LedgerRows:
    """The ledger of one run, read-only. Safe from several threads.

    It is open only while it is asked something: its writer makes a closed part one whole file once nobody reads it.
    """

    def __init__(self, moments: Path) -> None:
        """moments: directory of the ledger. Raises FileNotFoundError if there is none, OldLedgerError for an old one."""
        self._directory = moments
        self._lock = threading.Lock()
        self._users = 0
        self._reader: LedgerReader | None = None
        if (moments / _OLD_FILE).exists():
            raise OldLedgerError(
                f"{moments / _OLD_FILE} was written by an older version; its steps can be shown, its groups cannot"
            )
        with self.reading():
            return

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep it open from one question to the next."""
        with self._lock:
            if self._reader is None:
                self._reader = LedgerReader(self._directory)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._reader.close()
                    self._reader = None

    def incarnations(self) -> list[Incarnation]:
        """Every start of the run, oldest first."""
        with self._asking() as ledger:
            return [
                Incarnation(number, after, *_first_and_last_step(ledger, number))
                for number, after in sorted(ledger.incarnations().items())
            ]

    def policy_version(self, incarnation: int, step: int) -> int | None:
        """The version that the commit of a step led to."""
        rows = self._query("SELECT policy_version FROM commits WHERE incarnation = ? AND step = ?", (incarnation, step))
        return rows[0][0] if rows else None

    def columns(self, incarnation: int, first_step: int, last_step: int) -> list[tuple[Any, ...]]:
        """(step, sequence, group_id, source, cluster, lost, rewards, advantages, weight) of all groups folded in these steps.

        In order of step and feed; rewards and advantages as JSON, advantages and weight None for a group not trained on.
        """
        with self._asking() as ledger:
            return ledger.folded(
                (incarnation, first_step, last_step), "source, cluster, lost, rewards", "advantages, weight"
            )

    def folded(self, incarnation: int, step: int, places: Sequence[int]) -> list[FoldedGroup]:
        """Groups of one step at these places in the feed, in feed order."""
        with self._asking() as ledger:
            return ledger.batch(incarnation, step, places)

    def place(self, incarnation: int, group_id: str, sequences: Sequence[int]) -> int | None:
        """Which of these places in the feed a group has; None for none of them."""
        for start in range(0, len(sequences), _KEYS_A_QUERY):
            some = sequences[start : start + _KEYS_A_QUERY]
            rows = self._query(
                f"SELECT sequence FROM groups WHERE incarnation = ? AND sequence IN ({','.join('?' * len(some))}) AND group_id = ?",
                (incarnation, *some, group_id),
            )
            if rows:
                return int(rows[0][0])
        return None

    def texts(self, incarnation: int, sequence: int, group_id: str) -> Transcript | None:
        """The texts of a group; None where they were not kept."""
        with self._asking() as ledger:
            return ledger.transcript(incarnation, sequence, group_id)

    def texts_were_dropped(self, incarnation: int, sequence: int, group_id: str) -> bool:
        """Whether the texts of a group were kept once, and dropped when the ledger had grown."""
        with self._asking() as ledger:
            return ledger.texts_were_dropped(incarnation, sequence, group_id)

    def waiting(self, group_id: str) -> list[FoldedGroup]:
        """Groups of this id that no commit folded in yet, with step -1.

        Reads the whole ledger: only for an id that nothing else knows.
        """
        with self._asking() as ledger:
            found = ledger.find(group_id)
        return [
            FoldedGroup(incarnation, -1, group, cluster, advantages=None, baseline=None, scale=None, weight=None)
            for incarnation, group, cluster, step in found
            if step is None
        ]

    def _query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._asking() as ledger:
            return ledger.query(sql, values)

    @contextmanager
    def _asking(self) -> Iterator[LedgerReader]:
        with self.reading(), self._lock:
            assert self._reader is not None
            yield self._reader


def _first_and_last_step(reader: LedgerReader, incarnation: int) -> tuple[int | None, int | None]:
    """Of an incarnation's commits; None where there is none."""
    # Two queries: one for both ends would read every commit.
    low, high = (
        [step for (step,) in reader.query(f"SELECT {end}(step) FROM commits WHERE incarnation = ?", (incarnation,))]
        for end in ("MIN", "MAX")
    )
    return (
        min((step for step in low if step is not None), default=None),
        max((step for step in high if step is not None), default=None),
    )

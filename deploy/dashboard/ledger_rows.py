"""The questions that the dashboard asks a ledger. Each goes by a key that the ledger has, so that its size does not matter."""

import json
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moments_service.ledger import LedgerReader
from moments_service.rebuild import LEDGER_FILE

_FOLDED = (
    "g.sequence, g.group_id, g.source, g.cluster, g.lost, g.rewards, g.errors, g.lengths, g.truncated, g.oldest_version, "
    "g.newest_version, f.advantages, f.baseline, f.scale, f.weight"
)
_JOINED = "folds f JOIN groups g USING (incarnation, sequence, group_id)"


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


@dataclass(frozen=True, slots=True)
class FoldedRow:
    """One group as its commit folded it in. Lists have one entry a completion."""

    incarnation: int
    step: int
    sequence: int
    group_id: str
    source: str
    cluster: int
    lost: bool
    rewards: list[float | None]
    errors: list[str | None]
    lengths: list[int]
    truncated: list[bool]
    versions: tuple[int, int]
    advantages: list[float | None] | None
    """None, as the three numbers after it, for a group that was not trained on."""
    baseline: float | None
    scale: float | None
    weight: float | None


class LedgerRows:
    """The ledger of one run, read-only. Safe from several threads."""

    def __init__(self, moments: Path) -> None:
        """moments: directory of the ledger. Raises FileNotFoundError if there is none, OldLedgerError for an old one."""
        self._reader = LedgerReader(moments / LEDGER_FILE)
        self._lock = threading.Lock()
        self._query("SELECT 1 FROM folds LIMIT 1")

    def close(self) -> None:
        with self._lock:
            self._reader.close()

    def incarnations(self) -> list[Incarnation]:
        """Every start of the run, oldest first."""
        found = []
        for number, after in self._query("SELECT incarnation, after_step FROM incarnations ORDER BY incarnation"):
            # Two queries: one for both ends would read every commit.
            ends = [
                self._query(f"SELECT {end}(step) FROM commits WHERE incarnation = ?", (number,))[0][0]
                for end in ("MIN", "MAX")
            ]
            found.append(Incarnation(number, after, *ends))
        return found

    def policy_version(self, incarnation: int, step: int) -> int | None:
        """The version that the commit of a step led to."""
        rows = self._query("SELECT policy_version FROM commits WHERE incarnation = ? AND step = ?", (incarnation, step))
        return rows[0][0] if rows else None

    def columns(self, incarnation: int, first_step: int, last_step: int) -> list[tuple[Any, ...]]:
        """(step, sequence, group_id, source, cluster, lost, rewards, advantages, weight) of all groups folded in these steps.

        In order of step and feed; rewards and advantages as JSON, advantages and weight None for a group not trained on.
        """
        return self._query(
            "SELECT f.step, f.sequence, f.group_id, g.source, g.cluster, g.lost, g.rewards, f.advantages, f.weight "
            f"FROM {_JOINED} WHERE f.incarnation = ? AND f.step BETWEEN ? AND ? ORDER BY f.step, f.sequence, f.group_id",
            (incarnation, first_step, last_step),
        )

    def folded(self, incarnation: int, step: int, sequences: Sequence[int]) -> list[FoldedRow]:
        """Groups of one step at these places in the feed, in feed order."""
        marks = ",".join("?" * len(sequences))
        rows = self._query(
            f"SELECT {_FOLDED} FROM {_JOINED} WHERE f.incarnation = ? AND f.step = ? AND f.sequence IN ({marks}) "
            "ORDER BY f.sequence, f.group_id",
            (incarnation, step, *sequences),
        )
        return [_folded(incarnation, step, row) for row in rows]

    def texts(self, incarnation: int, sequence: int, group_id: str) -> tuple[str, list[str]] | None:
        """Prompt and completions of a group; None where they were not kept."""
        rows = self._query(
            "SELECT prompt, completions FROM transcripts WHERE incarnation = ? AND sequence = ? AND group_id = ?",
            (incarnation, sequence, group_id),
        )
        return (rows[0][0], json.loads(rows[0][1])) if rows else None

    def waiting(self, group_id: str) -> list[FoldedRow]:
        """Groups of this id that no commit folded in yet. Reads the whole ledger: only for an id that nothing else knows."""
        with self._lock:
            found = self._reader.find(group_id)
        return [
            FoldedRow(
                incarnation, -1, group.sequence, group.group_id, group.source, cluster, group.status == "lost",
                list(group.rewards), list(group.errors), list(group.lengths), list(group.truncated),
                group.policy_versions, None, None, None, None,
            )
            for incarnation, group, cluster, step in found
            if step is None
        ]  # fmt: skip

    def _query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._reader.query(sql, values)
            except sqlite3.OperationalError as error:
                if "no such" in str(error):
                    raise OldLedgerError(
                        f"{self._reader.path} was written by an older version ({error}); its steps can be shown, its groups cannot"
                    ) from None
                raise


def _folded(incarnation: int, step: int, row: tuple[Any, ...]) -> FoldedRow:
    rewards = json.loads(row[5])
    return FoldedRow(
        incarnation=incarnation,
        step=step,
        sequence=row[0],
        group_id=row[1],
        source=row[2],
        cluster=row[3],
        lost=bool(row[4]),
        rewards=rewards,
        errors=[None] * len(rewards) if row[6] is None else json.loads(row[6]),
        lengths=json.loads(row[7]),
        truncated=[bool(value) for value in json.loads(row[8])],
        versions=(row[9], row[10]),
        advantages=None if row[11] is None else json.loads(row[11]),
        baseline=row[12],
        scale=row[13],
        weight=row[14],
    )

"""The questions that the dashboard asks a ledger. Each goes by a key that the ledger has, so that its size does not matter."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moments_service.ledger import LedgerDamagedError, LedgerReader, RunLedger, ledger_directories

_OLD_FILE = "ledger.sqlite"
"""What the ledger was before it came in parts."""
_FOLD = "sequence, group_id, advantages, baseline, scale, weight"
_HEADER = "source, cluster, lost, rewards, errors, lengths, truncated, oldest_version, newest_version"
_SHORT_HEADER = "source, cluster, lost, rewards"
# A group may stand in an earlier part of the ledger than its fold; where it does, its columns are asked for by its key.
_JOINED = "folds LEFT JOIN groups USING (incarnation, sequence, group_id)"


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
    """The ledger of one run, read-only. Safe from several threads.

    It is open only while it is asked something: its writer makes a closed part one whole file once nobody reads it.
    """

    def __init__(self, moments: Path) -> None:
        """moments: directory of the ledger. Raises FileNotFoundError if there is none, OldLedgerError for an old one."""
        self._directory = moments
        self._lock = threading.Lock()
        self._users = 0
        self._reader: RunLedger | None = None
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
                self._reader = RunLedger(self._directory)
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
        """Every start of the run, oldest first, with the steps that all shards hold."""
        ends: dict[int, list[tuple[int | None, int | None]]] = {}
        starts: dict[int, int] = {}
        for directory in ledger_directories(self._directory):
            with closing(LedgerReader(directory)) as shard:
                for number, after in shard.incarnations().items():
                    starts[number] = after
                    ends.setdefault(number, []).append(_first_and_last_step(shard, number))
        found = []
        for number in sorted(starts):
            firsts, lasts = (
                [step for step in column if step is not None] for column in zip(*ends[number], strict=True)
            )
            # A shard that has not written a commit yet, or lost it in a crash, holds it back for all.
            complete = len(lasts) == len(ends[number]) and max(firsts) <= min(lasts)
            found.append(
                Incarnation(number, starts[number], max(firsts) if complete else None, min(lasts) if complete else None)
            )
        return found

    def policy_version(self, incarnation: int, step: int) -> int | None:
        """The version that the commit of a step led to."""
        rows = self._query("SELECT policy_version FROM commits WHERE incarnation = ? AND step = ?", (incarnation, step))
        return rows[0][0] if rows else None

    def columns(self, incarnation: int, first_step: int, last_step: int) -> list[tuple[Any, ...]]:
        """(step, sequence, group_id, source, cluster, lost, rewards, advantages, weight) of all groups folded in these steps.

        In order of step and feed; rewards and advantages as JSON, advantages and weight None for a group not trained on.
        """
        with self.reading():
            rows = self._query(
                f"SELECT step, sequence, group_id, {_SHORT_HEADER}, advantages, weight FROM {_JOINED} "
                "WHERE incarnation = ? AND step BETWEEN ? AND ?",
                (incarnation, first_step, last_step),
            )
            whole = [
                row
                if row[3] is not None
                else (*row[:3], *self._header(_SHORT_HEADER, incarnation, *row[1:3]), *row[7:])
                for row in rows
            ]
        return sorted(whole, key=lambda row: row[:3])

    def folded(self, incarnation: int, step: int, sequences: Sequence[int]) -> list[FoldedRow]:
        """Groups of one step at these places in the feed, in feed order."""
        marks = ",".join("?" * len(sequences))
        with self.reading():
            rows = self._query(
                f"SELECT {_FOLD}, {_HEADER} FROM {_JOINED} WHERE incarnation = ? AND step = ? AND sequence IN ({marks})",
                (incarnation, step, *sequences),
            )
            whole = [
                row if row[6] is not None else (*row[:6], *self._header(_HEADER, incarnation, *row[:2])) for row in rows
            ]
        return [_folded(incarnation, step, row) for row in sorted(whole, key=lambda row: row[:2])]

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

    def texts(self, incarnation: int, sequence: int, group_id: str) -> tuple[str, list[str]] | None:
        """Prompt and completions of a group; None where they were not kept."""
        with self.reading(), self._lock:
            assert self._reader is not None
            return self._reader.transcript(incarnation, sequence, group_id)

    def texts_were_dropped(self, incarnation: int, sequence: int, group_id: str) -> bool:
        """Whether the texts of a group were kept once, and dropped when the ledger had grown."""
        with self.reading(), self._lock:
            assert self._reader is not None
            return self._reader.texts_were_dropped(incarnation, sequence, group_id)

    def waiting(self, group_id: str) -> list[FoldedRow]:
        """Groups of this id that no commit folded in yet. Reads the whole ledger: only for an id that nothing else knows."""
        with self.reading(), self._lock:
            assert self._reader is not None
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

    def _header(self, columns: str, incarnation: int, sequence: int, group_id: str) -> tuple[Any, ...]:
        rows = self._query(
            f"SELECT {columns} FROM groups WHERE incarnation = ? AND sequence = ? AND group_id = ?",
            (incarnation, sequence, group_id),
        )
        if not rows:
            raise LedgerDamagedError(f"{self._directory}: a commit folded in group {group_id}, which no part holds")
        return rows[0]

    def _query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self.reading(), self._lock:
            assert self._reader is not None
            return self._reader.query(sql, values)


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


def _folded(incarnation: int, step: int, row: tuple[Any, ...]) -> FoldedRow:
    sequence, group_id, advantages, baseline, scale, weight, source, cluster, lost, rewards_json, errors, *rest = row
    lengths, truncated, oldest, newest = rest
    rewards = json.loads(rewards_json)
    return FoldedRow(
        incarnation=incarnation,
        step=step,
        sequence=sequence,
        group_id=group_id,
        source=source,
        cluster=cluster,
        lost=bool(lost),
        rewards=rewards,
        errors=[None] * len(rewards) if errors is None else json.loads(errors),
        lengths=json.loads(lengths),
        truncated=[bool(value) for value in json.loads(truncated)],
        versions=(oldest, newest),
        advantages=None if advantages is None else json.loads(advantages),
        baseline=baseline,
        scale=scale,
        weight=weight,
    )

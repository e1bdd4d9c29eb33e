"""What a ledger says: the commits of a run in their order, and everything about one group. Reads while others write."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moments_service.groups import GroupStatus, PolicyMove, ScoredGroup
from moments_service.ledger.schema import Row
from moments_service.moments import CommittedRewards
from moments_service.state import Counts
from moments_service.table import padded

_GROUP = "group_id, prompt_id, source, sequence, rewards, errors, lengths, truncated, oldest_version, newest_version, lost, cluster"


@dataclass(frozen=True, slots=True)
class LedgerCommit:
    """One batch that was folded into the moments."""

    incarnation: int
    step: int
    committed: CommittedRewards


@dataclass(frozen=True, slots=True)
class FoldedGroup:
    """One group as a commit folded it in; the numbers are None if it was not trained on."""

    group: ScoredGroup
    cluster: int
    step: int
    advantages: tuple[float | None, ...] | None
    baseline: float | None
    scale: float | None
    weight: float | None


class LedgerReader:
    """Read-only view of a ledger file."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError if there is none."""
        if not path.exists():
            raise FileNotFoundError(f"no ledger at {path}")
        self.path = path
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)

    def close(self) -> None:
        self._connection.close()

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Rows of any SELECT over the tables in schema.py."""
        return self._connection.execute(sql, values).fetchall()

    def last_incarnation(self) -> int:
        """The newest incarnation; -1 where none has begun."""
        newest = self._connection.execute("SELECT MAX(incarnation) FROM incarnations").fetchone()[0]
        return -1 if newest is None else int(newest)

    def lineage(self, incarnation: int) -> list[tuple[int, int, int]]:
        """(incarnation, first step, last step) of every part that the state of `incarnation` is made of, in order.

        Steps past the checkpoint that a later incarnation went on from are not part of it.
        """
        starts = dict(self._connection.execute("SELECT incarnation, after_step FROM incarnations").fetchall())
        parts: list[tuple[int, int, int]] = []
        end = 2**62
        for number in range(incarnation, -1, -1):
            after = starts[number]
            if after < end:
                parts.append((number, after + 1, end))
                end = after
        return list(reversed(parts))

    def commits(self, incarnation: int, first_step: int = 0, last_step: int = 2**62) -> Iterator[LedgerCommit]:
        """What an incarnation folded, in order of its steps."""
        rows = self._connection.execute(
            "SELECT step, policy_version, kl, log_ratio FROM commits WHERE incarnation = ? AND step BETWEEN ? AND ? "
            "ORDER BY step",
            (incarnation, first_step, last_step),
        ).fetchall()
        for step, policy_version, kl, log_ratio in rows:
            groups = self._connection.execute(
                "SELECT cluster, prompt_id, rewards, lengths FROM folds JOIN groups USING (incarnation, sequence, group_id) "
                "WHERE incarnation = ? AND step = ? ORDER BY sequence, group_id",
                (incarnation, step),
            ).fetchall()
            rewards, lengths = ([json.loads(row[column]) for row in groups] for column in (2, 3))
            width = max(map(len, rewards), default=0)
            committed = CommittedRewards(
                clusters=np.array([row[0] for row in groups], dtype=np.int64),
                rewards=padded(rewards, width, np.nan),
                prompts=tuple(row[1] for row in groups),
                policy_version=policy_version,
                move=None if kl is None else PolicyMove(kl, log_ratio),
                lengths=padded(lengths, width, np.nan),
            )
            yield LedgerCommit(incarnation, step, committed)

    def batch(self, incarnation: int, step: int) -> list[FoldedGroup]:
        """Everything that the commit of a step folded in, in feed order."""
        rows = self._connection.execute(
            f"SELECT {_GROUP}, step, advantages, baseline, scale, weight FROM folds "
            "JOIN groups USING (incarnation, sequence, group_id) WHERE incarnation = ? AND step = ? "
            "ORDER BY sequence, group_id",
            (incarnation, step),
        ).fetchall()
        return [FoldedGroup(_header(row), row[11], step, _tuple(row[13]), *row[14:]) for row in rows]

    def find(self, group_id: str) -> list[tuple[int, ScoredGroup, int, int | None]]:
        """(incarnation, header, cluster, step it was folded in or None) of every time that the group was submitted."""
        rows = self._connection.execute(
            f"SELECT {_GROUP}, incarnation, (SELECT step FROM folds WHERE folds.incarnation = groups.incarnation AND "
            "folds.sequence = groups.sequence AND folds.group_id = groups.group_id) FROM groups WHERE group_id = ?",
            (group_id,),
        ).fetchall()
        return [(row[12], _header(row), row[11], row[13]) for row in rows]

    def unfolded(self, incarnation: int) -> list[tuple[ScoredGroup, int]]:
        """Groups that were submitted and are part of no commit, with their clusters, in feed order."""
        rows = self._connection.execute(
            f"SELECT {_GROUP} FROM groups WHERE incarnation = ? AND NOT EXISTS (SELECT 1 FROM folds WHERE "
            "folds.incarnation = groups.incarnation AND folds.sequence = groups.sequence AND "
            "folds.group_id = groups.group_id) ORDER BY sequence, group_id",
            (incarnation,),
        ).fetchall()
        return [(_header(row), row[11]) for row in rows]

    def counts(self, incarnation: int) -> Counts:
        """What an incarnation did so far."""
        groups, completions, errors, lost = self._connection.execute(
            "SELECT COUNT(*), TOTAL(json_array_length(rewards)), TOTAL((SELECT COUNT(value) FROM json_each(errors))), "
            "TOTAL(lost) FROM groups WHERE incarnation = ?",
            (incarnation,),
        ).fetchone()
        died = self._connection.execute("SELECT COUNT(*) FROM losses WHERE incarnation = ?", (incarnation,)).fetchone()[
            0
        ]
        trained = self._connection.execute(
            "SELECT COUNT(advantages) FROM folds WHERE incarnation = ?", (incarnation,)
        ).fetchone()[0]
        return Counts(groups, int(completions), int(errors), int(lost) + died, trained)

    def transcript(self, incarnation: int, group_id: str) -> tuple[str, list[str]] | None:
        """Prompt and completions of a group, if its texts were kept."""
        row = self._connection.execute(
            "SELECT prompt, completions FROM transcripts WHERE incarnation = ? AND group_id = ?",
            (incarnation, group_id),
        ).fetchone()
        return None if row is None else (row[0], json.loads(row[1]))


def _header(row: tuple[Any, ...]) -> ScoredGroup:
    rewards = tuple(json.loads(row[4]))
    unscored = all(reward is None for reward in rewards)
    return ScoredGroup(
        group_id=row[0],
        prompt_id=row[1],
        source=row[2],
        sequence=row[3],
        rewards=rewards,
        errors=(None,) * len(rewards) if row[5] is None else tuple(json.loads(row[5])),
        lengths=tuple(json.loads(row[6])),
        truncated=tuple(json.loads(row[7])),
        policy_versions=(row[8], row[9]),
        status=GroupStatus.LOST if row[10] else GroupStatus.ERROR if unscored else GroupStatus.SCORED,
    )


def _tuple(text: str | None) -> tuple[float | None, ...] | None:
    return None if text is None else tuple(json.loads(text))


def last_incarnation(path: Path) -> int:
    """The newest incarnation in a ledger file; -1 where there is no file or nothing in it."""
    if not path.exists():
        return -1
    reader = LedgerReader(path)
    try:
        return reader.last_incarnation()
    finally:
        reader.close()

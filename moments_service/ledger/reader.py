"""What a ledger says: the commits of a run in their order, and everything about one group. Reads while others write.

A group and its fold may stand in two parts: the fold always in the same part or in a later one.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from moments_service.ledger.parts import PartConnections, part_paths
from moments_service.ledger.schema import DROPPED, Row
from moments_service.ledger.seals import LedgerDamagedError, unreadable
from moments_service.messages.counts import Counts
from moments_service.messages.groups import GroupStatus, PolicyMove, ScoredGroup, Transcript
from moments_service.messages.table import padded
from moments_service.moments import CommittedRewards

_GROUP = "group_id, prompt_id, source, sequence, rewards, errors, lengths, truncated, turns, oldest_version, newest_version, lost, cluster"
_COMMITTED = "cluster, prompt_id, rewards, lengths, oldest_version"
_ORDER = "incarnation, step, sequence, group_id"
_STEPS = "folds", "WHERE incarnation = ? AND step BETWEEN ? AND ?"
_UNREADABLE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN)
_KEY = "incarnation, sequence, group_id"
_SAME = "incarnation = ? AND sequence = ? AND group_id = ?"

GroupKey = tuple[int, int, str]
"""Incarnation, sequence and id of a group."""


@dataclass(frozen=True, slots=True)
class LedgerCommit:
    """One batch that was folded into the moments."""

    incarnation: int
    step: int
    committed: CommittedRewards
    keys: tuple[tuple[int, str], ...]
    """(sequence, id) of each group."""


@dataclass(frozen=True, slots=True)
class FoldedGroup:
    """One group as a commit folded it in; the numbers are None if it was not trained on."""

    incarnation: int
    step: int
    group: ScoredGroup
    cluster: int
    advantages: tuple[float | None, ...] | None
    baseline: float | None
    scale: float | None
    weight: float | None


class LedgerReader:
    """Read-only view of the ledger in one directory; parts that are begun while it is open are read too.

    Close it soon: a part that is closed while somebody has it open becomes one whole file only later.
    """

    def __init__(self, directory: Path, budget_s: float | None = None) -> None:
        """budget_s: what reading may take, None for any time. Raises FileNotFoundError if there is none."""
        if not part_paths(directory):
            raise FileNotFoundError(f"no ledger in {directory}")
        self.directory = directory
        self._connections = PartConnections(deadline=None if budget_s is None else time.monotonic() + budget_s)

    def __enter__(self) -> "LedgerReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connections.close()

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Rows of any SELECT over the tables in schema.py, asked of every part by itself, oldest first."""
        return [row for path in part_paths(self.directory) for row in self._ask(path, sql, values)]

    def newest(self, sql: str, values: Sequence[Any] = (), limit: int = 2**62) -> list[Row]:
        """Up to `limit` rows of a SELECT over `folds` that gives the newest first; older parts are asked only if need be.

        sql: ends in `ORDER BY incarnation DESC, step DESC, …`; a LIMIT is added.
        """
        rows: list[Row] = []
        for path in reversed(part_paths(self.directory)):
            if len(rows) == limit:
                break
            rows += self._ask(path, f"{sql} LIMIT ?", (*values, limit - len(rows)))
        return rows

    def incarnations(self) -> dict[int, int]:
        """`after_step` of every incarnation: the last step of the earlier ones that it went on from."""
        return dict(self.query("SELECT incarnation, after_step FROM incarnations"))

    def configs(self) -> dict[int, str]:
        """The configuration of every incarnation, as JSON; none of those that an older version ran."""
        found: dict[int, str] = {}
        for path in part_paths(self.directory):
            if self._ask(path, "SELECT 1 FROM sqlite_master WHERE name = 'configs'", ()):
                found |= dict(self._ask(path, "SELECT incarnation, config FROM configs", ()))
        return found

    def last_incarnation(self) -> int:
        """The newest incarnation; -1 where none has begun."""
        return max(self.incarnations(), default=-1)

    def lineage(self, incarnation: int) -> list[tuple[int, int, int]]:
        """(incarnation, first step, last step) of every stretch that the state of `incarnation` is made of, in order.

        Steps past the checkpoint that a later incarnation went on from are not part of it.
        """
        stretches: list[tuple[int, int, int]] = []
        end = 2**62
        for number, after in sorted(self.incarnations().items(), reverse=True):
            if number <= incarnation and after < end:
                stretches.append((number, after + 1, end))
                end = after
        return list(reversed(stretches))

    def steps(self, incarnation: int) -> list[int]:
        """Every step that the state of `incarnation` is made of, in order."""
        query = "SELECT step FROM commits WHERE incarnation = ? AND step BETWEEN ? AND ? ORDER BY step"
        return [step for stretch in self.lineage(incarnation) for (step,) in self.query(query, stretch)]

    def commits(self, incarnation: int, first_step: int = 0, last_step: int = 2**62) -> Iterator[LedgerCommit]:
        """What an incarnation folded, in order of its steps."""
        query = (
            "SELECT step, policy_version, kl, log_ratio FROM commits WHERE incarnation = ? AND step BETWEEN ? AND ? "
            "ORDER BY step"
        )
        paths = part_paths(self.directory)
        for number, path in enumerate(paths):
            for step, policy_version, kl, log_ratio in self._ask(path, query, (incarnation, first_step, last_step)):
                groups = self._folded(paths[: number + 1], _STEPS, (incarnation, step, step), _COMMITTED)
                rewards, lengths = ([json.loads(row[column]) for row in groups] for column in (6, 7))
                width = max(map(len, rewards), default=0)
                committed = CommittedRewards(
                    clusters=np.array([row[4] for row in groups], dtype=np.int64),
                    rewards=padded(rewards, width, np.nan),
                    prompts=tuple(row[5] for row in groups),
                    policy_version=policy_version,
                    move=None if kl is None else PolicyMove(kl, log_ratio),
                    lengths=padded(lengths, width, np.nan),
                    born=np.array([row[8] for row in groups], dtype=np.int64),
                )
                yield LedgerCommit(incarnation, step, committed, tuple(row[2:4] for row in groups))

    def batch(self, incarnation: int, step: int) -> list[FoldedGroup]:
        """What the commit of a step folded in, in feed order."""
        return self._groups(_STEPS, (incarnation, step, step))

    def at(self, places: Sequence[tuple[int, int, int, str]]) -> list[FoldedGroup]:
        """What commits made of these groups, (incarnation, step, sequence, id) each, oldest first."""
        keys = ", ".join(["(?, ?, ?, ?)"] * len(places))
        # Only so does SQLite look each of them up; with IN it reads all folds.
        wanted = f"(SELECT column1 incarnation, column2 step, column3 sequence, column4 group_id FROM (VALUES {keys}))"
        which = f"{wanted} CROSS JOIN folds USING ({_ORDER})", ""
        return self._groups(which, [value for place in places for value in place]) if places else []

    def folded(self, steps: tuple[int, int, int], group: str, fold: str) -> list[Row]:
        """(step, sequence, group id, these columns of `groups`, these of `folds`) of every group that was folded in.

        In order of step and feed. steps: incarnation, first and last step.
        """
        paths = part_paths(self.directory)
        return [
            row[1:] for end in range(1, len(paths) + 1) for row in self._folded(paths[:end], _STEPS, steps, group, fold)
        ]

    def find(self, group_id: str) -> list[tuple[int, ScoredGroup, int, int | None]]:
        """(incarnation, header, cluster, step it was folded in or None) of every time that the group was submitted."""
        found = []
        for row in self.query(f"SELECT {_GROUP}, incarnation FROM groups WHERE group_id = ?", (group_id,)):
            steps = self.query(f"SELECT step FROM folds WHERE {_SAME}", (row[13], row[3], group_id))
            found.append((row[13], _header(row), row[12], steps[0][0] if steps else None))
        return sorted(found, key=lambda entry: entry[0])

    def unfolded(self, incarnation: int) -> list[tuple[ScoredGroup, int]]:
        """Groups that were submitted and are part of no commit, with their clusters, in feed order."""
        query = "SELECT sequence, group_id FROM {} WHERE incarnation = ? EXCEPT SELECT sequence, group_id FROM {} WHERE incarnation = ?"
        waiting: dict[Row, Path] = {}
        for path in part_paths(self.directory):
            for key in self._ask(path, query.format("folds", "groups"), (incarnation, incarnation)):
                waiting.pop(key, None)
            submitted = self._ask(path, query.format("groups", "folds"), (incarnation, incarnation))
            waiting |= dict.fromkeys(submitted, path)
        header = f"SELECT {_GROUP} FROM groups WHERE {_SAME}"
        rows = [self._ask(path, header, (incarnation, *key))[0] for key, path in sorted(waiting.items())]
        return [(_header(row), row[12]) for row in rows]

    def counts(self, incarnation: int, last_step: int = 2**62) -> Counts:
        """What an incarnation had done when it committed `last_step`, or so far."""
        sealed = self.query("SELECT seal FROM commits WHERE incarnation = ? AND step = ?", (incarnation, last_step))
        values = (incarnation, sealed[0][0] if sealed else 2**62)
        groups, completions, errors, lost = _sums(
            self.query(
                "SELECT COUNT(*), TOTAL(size), TOTAL(failed), TOTAL(lost) FROM groups WHERE incarnation = ? AND seal <= ?",
                values,
            )
        )
        (died,) = _sums(self.query("SELECT COUNT(*) FROM losses WHERE incarnation = ? AND seal <= ?", values))
        (trained,) = _sums(
            self.query("SELECT COUNT(advantages) FROM folds WHERE incarnation = ? AND seal <= ?", values)
        )
        return Counts(groups, completions, errors, lost + died, trained)

    def transcript(self, incarnation: int, sequence: int, group_id: str) -> Transcript | None:
        """The texts of a group, if they were kept."""
        key = incarnation, sequence, group_id
        return self.transcripts([key]).get(key)

    def transcripts(self, keys: Sequence[GroupKey]) -> dict[GroupKey, Transcript]:
        """The texts of those of these groups whose texts were kept."""
        return {
            key: Transcript(prompt, tuple(json.loads(completions)))
            for path in part_paths(self.directory)
            for key, (prompt, completions) in self._by_key(path, "transcripts", "prompt, completions", keys)
        }

    def saying(self, keys: Sequence[GroupKey], text: str) -> set[GroupKey]:
        """Those of these groups whose prompt, completions or errors say this, whatever the case of letters."""
        wanted = text.casefold()
        found: set[GroupKey] = set()
        for path in part_paths(self.directory):
            for key, (prompt, completions) in self._by_key(path, "transcripts", "prompt, completions", keys):
                if any(wanted in one.casefold() for one in (prompt, *json.loads(completions))):
                    found.add(key)
            for key, (errors,) in self._by_key(path, "groups", "errors", keys):
                if errors is not None and any(wanted in one.casefold() for one in json.loads(errors) if one):
                    found.add(key)
        return found

    def reward_parts(self, keys: Sequence[GroupKey]) -> dict[GroupKey, tuple[dict[str, float] | None, ...]]:
        """What the rewards of groups are made of, of those whose verifier said it."""
        found: dict[GroupKey, tuple[dict[str, float] | None, ...]] = {}
        for path in part_paths(self.directory):
            known = self._ask(path, "SELECT 1 FROM sqlite_master WHERE name = 'reward_parts'", ())
            rows = self._by_key(path, "transcripts", "reward_parts", keys)
            rows += self._by_key(path, "reward_parts", "parts", keys) if known else []
            found |= {key: tuple(json.loads(parts)) for key, (parts,) in rows if parts is not None}
        return found

    def texts_were_dropped(self, incarnation: int, sequence: int, group_id: str) -> bool:
        """Whether retention dropped the texts of what was written together with a group."""
        query = f"SELECT 1 FROM groups JOIN seals USING (seal) WHERE {_SAME} AND texts = ?"
        return bool(self.query(query, (incarnation, sequence, group_id, DROPPED)))

    def _by_key(self, path: Path, table: str, columns: str, keys: Sequence[GroupKey]) -> list[tuple[GroupKey, Row]]:
        """These columns of the rows of a part that belong to groups."""
        if not keys:
            return []
        # Only so does SQLite look each of them up; with IN it reads the whole table.
        wanted = f"(SELECT column1 incarnation, column2 sequence, column3 group_id FROM (VALUES {', '.join(['(?, ?, ?)'] * len(keys))}))"
        query = f"SELECT {_KEY}, {columns} FROM {wanted} CROSS JOIN {table} USING ({_KEY})"
        rows = self._ask(path, query, [value for key in keys for value in key])
        return [((row[0], row[1], row[2]), row[3:]) for row in rows]

    def _ask(self, path: Path, sql: str, values: Sequence[Any]) -> list[Row]:
        try:
            return self._connections.of(path).execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CANTOPEN) & 0xFF
            if code in _UNREADABLE or str(error).startswith("no such table"):  # an empty file is an empty database
                raise unreadable(path, error) from None
            raise

    def _groups(self, which: tuple[str, str], values: Sequence[Any]) -> list[FoldedGroup]:
        paths = part_paths(self.directory)
        fold = "advantages, baseline, scale, weight"
        return [
            FoldedGroup(row[0], row[1], _header(row[4:]), row[16], _tuple(row[17]), *row[18:])
            for end in range(1, len(paths) + 1)
            for row in self._folded(paths[:end], which, values, _GROUP, fold)
        ]

    def _folded(
        self,
        paths: Sequence[Path],
        which: tuple[str, str],
        values: Sequence[Any],
        group: str,
        fold: str = "baseline",
    ) -> list[Row]:
        """(incarnation, step, sequence, group id, these columns of `groups`, these of `folds`) of folds in the last part.

        Their groups may stand in the parts before. which: tables to select from, and a WHERE clause.
        Raises LedgerDamagedError if a group that was folded in stands in none of them.
        """
        *before, path = paths
        group, fold = (
            ", ".join(f"{table}.{name}" for name in names.split(", "))
            for table, names in (("groups", group), ("folds", fold))
        )
        rows = self._ask(
            path,
            f"SELECT groups.seal, incarnation, step, sequence, group_id, {group}, {fold} FROM {which[0]} "
            f"LEFT JOIN groups USING (incarnation, sequence, group_id) {which[1]} ORDER BY {_ORDER}",
            values,
        )
        folded = []
        for seal, *row in rows:
            if seal is None:
                query, (incarnation, step, *key) = f"SELECT {group} FROM groups WHERE {_SAME}", row[:4]
                found = (self._ask(part, query, (incarnation, *key)) for part in reversed(before))
                header = next((rows[0] for rows in found if rows), None)
                if header is None:
                    raise LedgerDamagedError(f"{path}: step {step} folded in group {key[1]}, which no part holds")
                row[4 : 4 + len(header)] = header
            folded.append(tuple(row))
        return folded


_numbers = msgspec.json.Decoder().decode
"""Of JSON without texts, in a fraction of json's time; it refuses the lone surrogates that texts may hold."""


def _header(row: tuple[Any, ...]) -> ScoredGroup:
    rewards = tuple(_numbers(row[4]))
    unscored = all(reward is None for reward in rewards)
    return ScoredGroup(
        group_id=row[0],
        prompt_id=row[1],
        source=row[2],
        sequence=row[3],
        rewards=rewards,
        errors=(None,) * len(rewards) if row[5] is None else tuple(json.loads(row[5])),
        lengths=tuple(_numbers(row[6])),
        truncated=tuple(_numbers(row[7])),
        turns=tuple(_numbers(row[8])),
        policy_versions=(row[9], row[10]),
        status=GroupStatus.LOST if row[11] else GroupStatus.ERROR if unscored else GroupStatus.SCORED,
    )


def _tuple(text: str | None) -> tuple[float | None, ...] | None:
    return None if text is None else tuple(_numbers(text))


def last_incarnation(directory: Path) -> int:
    """The newest incarnation of the ledger in a directory; -1 where there is none or nothing in it."""
    if not part_paths(directory):
        return -1
    with LedgerReader(directory) as reader:
        return reader.last_incarnation()


def _sums(rows: Sequence[Row]) -> list[int]:
    return [int(sum(column)) for column in zip(*rows, strict=True)]

"""The ledger: every group that was ever sampled and scored, on disk before it is acknowledged.

One SQLite file in WAL mode with one writer; anybody may read it while the run goes on. Rows are only ever added, or a
group's status changed from scored to lost. An incarnation is one start of a run: a resume begins the next one, and what
an earlier incarnation wrote past the checkpoint stays readable but is not part of the state.
"""

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moments_service.groups import Batch, GroupStatus, PolicyMove, ScoredGroup, Transcript

_SCHEMA = """
CREATE TABLE IF NOT EXISTS groups (
    incarnation INTEGER NOT NULL, group_id TEXT NOT NULL, prompt_id TEXT NOT NULL, source TEXT NOT NULL,
    sequence INTEGER NOT NULL, cluster INTEGER NOT NULL, status TEXT NOT NULL, rewards TEXT NOT NULL, errors TEXT NOT NULL,
    lengths TEXT NOT NULL, truncated TEXT NOT NULL, oldest_version INTEGER NOT NULL, newest_version INTEGER NOT NULL,
    PRIMARY KEY (incarnation, group_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS transcripts (
    incarnation INTEGER NOT NULL, group_id TEXT NOT NULL, prompt TEXT NOT NULL, completions TEXT NOT NULL,
    PRIMARY KEY (incarnation, group_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS advantages (
    incarnation INTEGER NOT NULL, group_id TEXT NOT NULL, step INTEGER NOT NULL, advantages TEXT NOT NULL,
    baseline REAL NOT NULL, scale REAL NOT NULL, weight REAL NOT NULL, PRIMARY KEY (incarnation, group_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS commits (
    incarnation INTEGER NOT NULL, step INTEGER NOT NULL, policy_version INTEGER NOT NULL, kl REAL, log_ratio REAL,
    group_ids TEXT NOT NULL, PRIMARY KEY (incarnation, step)
) WITHOUT ROWID;
"""

_Statement = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class LedgerCommit:
    """One batch that was folded into the moments: its step and the groups in folding order."""

    step: int
    policy_version: int
    move: PolicyMove | None
    group_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LedgerGroup:
    """The part of a group's row that moments are made of."""

    group_id: str
    prompt_id: str
    cluster: int
    rewards: tuple[float | None, ...]


class Ledger:
    """Writer and reader of one ledger file. Lives in one event loop."""

    def __init__(self, path: Path, incarnation: int) -> None:
        self.path = path
        self.incarnation = incarnation
        self._connection = sqlite3.connect(path, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        # FULL: a commit is on the disk when it returns, also through a power cut.
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(_SCHEMA)
        # A second connection sees only what is committed, so what it finds is on the disk.
        self._reader = sqlite3.connect(path, check_same_thread=False)
        # Producer: submit and commit calls. Consumer: _write_batches. Bounded by the driver's slot budget.
        self._pending: asyncio.Queue[tuple[list[_Statement], asyncio.Future[None]] | None] = asyncio.Queue()
        self._writer: asyncio.Task[None] | None = None

    async def append(self, group: ScoredGroup, cluster: int, transcript: Transcript | None) -> None:
        """Write one group. Returns when it is on the disk."""
        row = (
            self.incarnation, group.group_id, group.prompt_id, group.source, group.sequence, cluster, group.status.value,
            json.dumps(group.rewards), json.dumps(group.errors), json.dumps(group.lengths), json.dumps(group.truncated),
            *group.policy_versions,
        )  # fmt: skip
        statements: list[_Statement] = [(f"INSERT OR IGNORE INTO groups VALUES ({_marks(13)})", row)]
        if transcript is not None:
            texts = (self.incarnation, group.group_id, transcript.prompt, json.dumps(transcript.completions))
            statements.append((f"INSERT OR IGNORE INTO transcripts VALUES ({_marks(4)})", texts))
        await self._write(statements)

    def holds(self, group_id: str) -> bool:
        """Whether the group is on the disk already."""
        query = "SELECT 1 FROM groups WHERE incarnation = ? AND group_id = ?"
        return self._reader.execute(query, (self.incarnation, group_id)).fetchone() is not None

    async def mark_lost(self, group_ids: tuple[str, ...]) -> None:
        """Record that the payloads of these groups died before they were trained on."""
        change = "UPDATE groups SET status = ? WHERE incarnation = ? AND group_id = ?"
        await self._write([(change, (GroupStatus.LOST.value, self.incarnation, group_id)) for group_id in group_ids])

    async def append_commit(self, commit: LedgerCommit, batch: Batch) -> None:
        """Write one fold into the moments, and the advantages that its batch was trained with."""
        statements: list[_Statement] = [
            (
                f"INSERT INTO commits VALUES ({_marks(6)})",
                (
                    self.incarnation,
                    commit.step,
                    commit.policy_version,
                    commit.move and commit.move.kl,
                    commit.move and commit.move.log_ratio,
                    json.dumps(commit.group_ids),
                ),
            )
        ]
        for blended in batch.groups:
            row = (
                self.incarnation, blended.group.group_id, batch.step, json.dumps(blended.advantages),
                blended.baseline, blended.scale, blended.weight,
            )  # fmt: skip
            statements.append((f"INSERT INTO advantages VALUES ({_marks(7)})", row))
        await self._write(statements)

    def commits(self) -> Iterator[tuple[LedgerCommit, list[LedgerGroup]]]:
        """Every commit of this incarnation in order, with its groups in folding order."""
        rows = self._reader.execute(
            "SELECT step, policy_version, kl, log_ratio, group_ids FROM commits WHERE incarnation = ? ORDER BY step",
            (self.incarnation,),
        ).fetchall()
        for step, policy_version, kl, log_ratio, group_ids in rows:
            move = None if kl is None else PolicyMove(kl, log_ratio)
            commit = LedgerCommit(step, policy_version, move, tuple(json.loads(group_ids)))
            yield commit, [self._group(group_id) for group_id in commit.group_ids]

    async def close(self) -> None:
        """Finish what is pending, then close the file."""
        if self._writer is not None:
            self._pending.put_nowait(None)
            await self._writer
        self._reader.close()
        self._connection.close()

    def _group(self, group_id: str) -> LedgerGroup:
        row = self._reader.execute(
            "SELECT prompt_id, cluster, rewards FROM groups WHERE incarnation = ? AND group_id = ?",
            (self.incarnation, group_id),
        ).fetchone()
        if row is None:
            raise RuntimeError(f"ledger {self.path} is damaged: a commit names group {group_id}, which is not in it")
        return LedgerGroup(group_id, row[0], row[1], tuple(json.loads(row[2])))

    async def _write(self, statements: list[_Statement]) -> None:
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_batches(), name="ledger-writer")
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.put_nowait((statements, written))
        await written

    async def _write_batches(self) -> None:
        """Consumes: pending writes, all there are per transaction. Waits for: the next one. Ends: on close."""
        closing = False
        while not closing:
            entries = [await self._pending.get()]
            while not self._pending.empty():
                entries.append(self._pending.get_nowait())
            writes = [entry for entry in entries if entry is not None]
            closing = len(writes) < len(entries)
            try:
                await asyncio.to_thread(
                    self._transact, [statement for statements, _ in writes for statement in statements]
                )
            except sqlite3.Error as error:
                for _, written in writes:
                    written.set_exception(RuntimeError(f"ledger {self.path} cannot be written: {error}"))
            else:
                for _, written in writes:
                    if not written.cancelled():
                        written.set_result(None)

    def _transact(self, statements: list[_Statement]) -> None:
        with self._connection:
            for sql, values in statements:
                self._connection.execute(sql, values)


def _marks(count: int) -> str:
    return ",".join("?" * count)


def last_incarnation(path: Path) -> int:
    """The newest incarnation in a ledger file; -1 where there is no file or nothing in it."""
    if not path.exists():
        return -1
    connection = sqlite3.connect(path)
    try:
        newest = connection.execute(
            "SELECT MAX(incarnation) FROM (SELECT incarnation FROM groups UNION ALL SELECT incarnation FROM commits)"
        ).fetchone()[0]
    finally:
        connection.close()
    return -1 if newest is None else int(newest)

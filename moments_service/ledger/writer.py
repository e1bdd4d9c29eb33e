"""The ledger: every group that was ever sampled and scored, on disk before it is acknowledged.

SQLite files in WAL mode with one writer, cut into parts; anybody may read them while the run goes on. An incarnation is one
start of a run: a resume begins the next one, and what an earlier incarnation wrote past the checkpoint stays readable but is
not part of the state.
"""

import asyncio
import json
import logging
import math
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from moments_service.durable import strict_json
from moments_service.estimators.base import carries_signal
from moments_service.ledger.closed import ClosedParts
from moments_service.ledger.outcomes import mean_rewards, outcomes, uniform
from moments_service.ledger.parts import DEFAULT_LIMITS, LedgerLimits, begin_part, part_paths, remove_partials
from moments_service.ledger.reader import LedgerReader
from moments_service.ledger.schema import (
    RepeatedRows,
    Row,
    create_tables,
    drop_indexes,
    json_rows,
    open_for_reading,
    open_for_writing,
)
from moments_service.ledger.seals import LedgerEnd, LedgerReport, Seal, check_parts, write_transaction
from moments_service.ledger.seen import SeenPlaces
from moments_service.messages.batch import Batch
from moments_service.messages.groups import PolicyMove, Transcript
from moments_service.messages.table import GroupTable

logger = logging.getLogger(__name__)

Write = list[tuple[str, list[Row]]]
"""Rows of one write, by table."""


class Ledger:
    """Writer of the ledger in one directory. Lives in one event loop; opening it checks every part.

    Raises LedgerDamagedError where it is damaged anywhere but at its very end.
    """

    def __init__(
        self,
        directory: Path,
        incarnation: int,
        after_step: int = -1,
        limits: LedgerLimits = DEFAULT_LIMITS,
        config: str | None = None,
    ) -> None:
        """after_step: the last step of the earlier incarnations that this one goes on from.    config: what it runs with, JSON."""
        self.directory = directory
        self.incarnation = incarnation
        self._limits = limits
        if not part_paths(directory):
            remove_partials(directory)
            begin_part(directory, 0, Seal())
        paths, report = checked_for_writing(directory)
        self._last = report.last
        self._closed = ClosedParts(paths[:-1], incarnation, limits.texts_bytes)
        self._closed.finish()
        self._number = len(paths) - 1
        self.path = paths[-1]
        self.connection = open_for_writing(self.path)
        create_tables(self.connection)
        drop_indexes(self.connection)
        # A second connection sees only what is committed, so what it finds is on the disk.
        self._reader = open_for_reading(self.path)
        self._full_at = limits.part_bytes
        begun, self._seen = _begun(directory, incarnation)
        if not begun:
            configs: list[Row] = [] if config is None else [(incarnation, config)]
            self._transact([[("incarnations", [(incarnation, after_step)]), ("configs", configs)]])
        self._reward_texts, self._truncated_texts, self._turn_texts = RepeatedRows(), RepeatedRows(), RepeatedRows()
        # Producer: submit and commit calls. Consumer: _write_batches. Bounded by the driver's slot budget.
        self._pending: asyncio.Queue[tuple[Write, asyncio.Future[None]] | None] = asyncio.Queue()
        self._writer: asyncio.Task[None] | None = None
        self._tidying: asyncio.Task[None] | None = None

    @property
    def end(self) -> LedgerEnd:
        """The newest transaction that is on the disk."""
        return LedgerEnd(self._number, self._last.number, self._last.checksum)

    async def append(
        self, table: GroupTable, clusters: np.ndarray, transcripts: Sequence[Transcript | None] | None = None
    ) -> None:
        """Write groups that the ledger does not hold. Returns when they are on the disk.

        clusters: [N].    transcripts: N of them, or None.
        """
        texts = [
            (
                self.incarnation,
                int(table.sequence[row]),
                table.group_ids[row],
                text.prompt,
                json.dumps(text.completions),
                None,
            )
            for row, text in enumerate(transcripts or ())
            if text is not None
        ]
        parts = [
            (self.incarnation, int(table.sequence[row]), table.group_ids[row], _parts_json(of_group))
            for row, of_group in enumerate(table.parts)
            if of_group is not None
        ]
        groups = ("groups", self._group_rows(table, clusters))
        await self._write([groups, ("transcripts", texts), ("reward_parts", parts)])
        self._seen.add(table.sequence)

    def held(self, table: GroupTable) -> set[str]:
        """Ids of those groups that are on the disk already."""
        query = "SELECT 1 FROM groups WHERE incarnation = ? AND sequence = ? AND group_id = ?"
        again = np.flatnonzero(self._seen.contains(table.sequence)).tolist()
        keys = [(table.group_ids[row], int(table.sequence[row])) for row in again]
        return {
            group_id
            for group_id, sequence in keys
            if self._reader.execute(query, (self.incarnation, sequence, group_id)).fetchone()
            or self._closed.holds(sequence, group_id)
        }

    async def append_losses(self, groups: Iterable[tuple[int, str]]) -> None:
        """Record that the payloads of these groups, (sequence, id) each, died before they were trained on."""
        await self._write([("losses", [(self.incarnation, *group) for group in groups])])

    async def append_commit(
        self,
        batch: Batch,
        policy_version: int,
        move: PolicyMove | None,
        closed: GroupTable,
        closed_clusters: np.ndarray,
    ) -> None:
        """Write one fold into the moments: the batch with its advantages, and the groups that were not trained on."""
        numbers = (_real(column).tolist() for column in (batch.weight, batch.baseline, batch.scale))
        signal = carries_signal(batch.advantages)
        rescued = signal & uniform(batch.table.rewards)
        folds = self._fold_rows(batch.step, batch.table, batch.clusters, False, signal, rescued)
        folds = [
            (*row, *rest)
            for row, *rest in zip(folds, *numbers, json_rows(batch.advantages, batch.table.sizes), strict=True)
        ]
        nothing = np.zeros(len(closed), dtype=np.bool_)
        folds += [
            (*row, None, None, None, None)
            for row in self._fold_rows(batch.step, closed, closed_clusters, True, nothing, nothing)
        ]
        measured = (None, None) if move is None else (move.kl, move.log_ratio)
        commit = (self.incarnation, batch.step, policy_version, *measured)
        await self._write([("folds", folds), ("commits", [commit])])

    async def close(self) -> None:
        """Finish what is pending, then close the files. Every part is one whole file then, unless somebody reads it."""
        if self._writer is not None:
            self._pending.put_nowait(None)
            await self._writer
        if self._tidying is not None:
            await self._tidying
        self._reader.close()
        self._closed.add(self.path, self.connection, self.connection)
        self._closed.close()

    def _fold_rows(
        self, step: int, table: GroupTable, clusters: np.ndarray, closed: bool, signal: np.ndarray, rescued: np.ndarray
    ) -> list[Row]:
        """What a fold says of each group, but for the numbers that made its advantages."""
        return list(
            zip(
                (self.incarnation,) * len(table),
                (step,) * len(table),
                table.sequence.tolist(),
                table.group_ids,
                table.sources,
                clusters.tolist(),
                outcomes(table.rewards, closed),
                mean_rewards(table.rewards),
                signal.astype(int).tolist(),
                rescued.astype(int).tolist(),
                strict=True,
            )
        )

    def _group_rows(self, table: GroupTable, clusters: np.ndarray) -> list[Row]:
        rows = len(table)
        return list(
            zip(
                (self.incarnation,) * rows,
                table.sequence.tolist(),
                table.group_ids,
                table.prompt_ids,
                table.sources,
                clusters.tolist(),
                table.lost.astype(int).tolist(),
                table.sizes.tolist(),
                (table.sizes - (~np.isnan(table.rewards)).sum(axis=1)).tolist(),
                mean_rewards(table.rewards),
                table.lengths.sum(axis=1).tolist(),
                self._reward_texts.json(table.rewards, table.sizes),
                [None if errors is None else json.dumps(errors) for errors in table.errors],
                json_rows(table.lengths, table.sizes),
                self._truncated_texts.json(table.truncated, table.sizes),
                self._turn_texts.json(table.turns, table.sizes),
                table.policy_versions[:, 0].tolist(),
                table.policy_versions[:, 1].tolist(),
                strict=True,
            )
        )

    async def _write(self, write: Write) -> None:
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_batches(), name="ledger-writer")
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.put_nowait((write, written))
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
                if writes:
                    await asyncio.to_thread(self._transact, [write for write, _ in writes])
            except Exception as error:  # whatever it is: who waits for an acknowledgement has to hear of it
                for _, written in writes:
                    if not written.cancelled():
                        written.set_exception(RuntimeError(f"ledger {self.path} cannot be written: {error}"))
            else:
                for _, written in writes:
                    if not written.cancelled():
                        written.set_result(None)
                if writes and self._size() >= self._full_at:
                    await self._begin_next_part()

    def _size(self) -> int:
        """Bytes of the open part, with what is still in its log."""
        pages, page_size = (
            self.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")
        )
        return int(pages * page_size)

    async def _begin_next_part(self) -> None:
        """Close the open part between two transactions. Until the next part has its name, this one stays the open one."""
        try:
            path, first, connection, reader = await asyncio.to_thread(self._opened_next_part)
            self._closed.add(self.path, self._reader, self.connection)
        except (OSError, sqlite3.Error) as error:
            self._full_at = self._size() + self._limits.part_bytes // 4
            logger.error("%s grows past its size, because the next part cannot be begun: %s", self.path, error)
            return
        self._reader.close()
        self.path, self.connection, self._reader = path, connection, reader
        self._number, self._last, self._full_at = self._number + 1, first, self._limits.part_bytes
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.create_task(asyncio.to_thread(self._closed.tidy), name="ledger-tidying")

    def _opened_next_part(self) -> tuple[Path, Seal, sqlite3.Connection, sqlite3.Connection]:
        path, first = begin_part(self.directory, self._number + 1, self._last)
        return path, first, open_for_writing(path), open_for_reading(path)

    def _transact(self, writes: Iterable[Write]) -> None:
        rows: dict[str, list[Row]] = defaultdict(list)
        for write in writes:
            for table, added in write:
                if added:
                    rows[table] += added
        self._last = write_transaction(self.connection, self._last.number + 1, rows)


def checked_for_writing(directory: Path) -> tuple[list[Path], LedgerReport]:
    """Check all of a ledger before it is written to: its parts, and what was found. Only for who owns it.

    What a killed writer left unfinished at its very end is removed. Raises LedgerDamagedError.
    """
    remove_partials(directory)
    paths = part_paths(directory)
    if not paths:
        return [], LedgerReport(0, Seal())
    paths[-1].chmod(0o644)  # read-only since the ledger was closed
    report = check_parts(paths, writing=True)
    if report.cut:
        logger.warning("%s: cut an unfinished write (%d transactions)", paths[-1], report.cut)
    return paths, report


def _parts_json(parts: Sequence[dict[str, float] | None]) -> str:
    """What rewards are the sums of, as strict JSON: a part that is no finite number is left out."""
    return strict_json([some and {name: part for name, part in some.items() if math.isfinite(part)} for some in parts])


def _real(column: np.ndarray) -> np.ndarray:
    """Numbers as SQLite keeps them: it has no -0.0, and the checksum is over what is read back."""
    return column + 0.0


def _begun(directory: Path, incarnation: int) -> tuple[bool, SeenPlaces]:
    """Whether an incarnation has begun already, and the places in the feed that it has groups of."""
    seen = SeenPlaces()
    with LedgerReader(directory) as reader:
        places = reader.query("SELECT sequence FROM groups WHERE incarnation = ?", (incarnation,))
        seen.add(np.array(places, dtype=np.int64).reshape(-1))
        return incarnation in reader.incarnations(), seen

"""The ledger: every group that was ever sampled and scored, on disk before it is acknowledged.

One SQLite file in WAL mode with one writer; anybody may read it while the run goes on. An incarnation is one start of a
run: a resume begins the next one, and what an earlier incarnation wrote past the checkpoint stays readable but is not
part of the state.
"""

import asyncio
import json
import logging
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from moments_service.batch import Batch
from moments_service.groups import PolicyMove, Transcript
from moments_service.ledger.schema import RepeatedRows, Row, TransactionHash, create_tables, insert, json_rows
from moments_service.ledger.seals import LedgerDamagedError, check_wal, verify
from moments_service.ledger.seen import SeenPlaces
from moments_service.table import GroupTable

logger = logging.getLogger(__name__)

Write = list[tuple[str, list[Row]]]
"""Rows of one write, by table."""


class Ledger:
    """Writer of one ledger file. Lives in one event loop; opening it checks every row.

    Raises LedgerDamagedError where the file is damaged anywhere but at its very end.
    """

    def __init__(self, path: Path, incarnation: int, after_step: int = -1) -> None:
        """after_step: the last step of the earlier incarnations that this one goes on from."""
        self.path = path
        self.incarnation = incarnation
        torn = check_wal(path)
        self.connection = sqlite3.connect(path, check_same_thread=False)
        try:
            create_tables(self.connection)
        except sqlite3.DatabaseError as error:
            raise LedgerDamagedError(f"{path} is damaged: {error}; restore the file from a copy") from None
        report = verify(self.connection, path, cut_end=True)
        if torn or report.cut:
            logger.warning("%s: cut an unfinished write (%d frames, %d transactions)", path, torn, report.cut)
        newest = self.connection.execute("SELECT MAX(seal) FROM seals").fetchone()[0]
        self._next_seal = 0 if newest is None else newest + 1
        # A second connection sees only what is committed, so what it finds is on the disk.
        self._reader = sqlite3.connect(path, check_same_thread=False)
        self._seen = SeenPlaces()
        rows = self._reader.execute("SELECT sequence FROM groups WHERE incarnation = ?", (incarnation,)).fetchall()
        self._seen.add(np.array(rows, dtype=np.int64).reshape(-1))
        if not self._reader.execute("SELECT 1 FROM incarnations WHERE incarnation = ?", (incarnation,)).fetchone():
            self._transact([[("incarnations", [(incarnation, after_step)])]])
        self._reward_texts, self._truncated_texts = RepeatedRows(), RepeatedRows()
        # Producer: submit and commit calls. Consumer: _write_batches. Bounded by the driver's slot budget.
        self._pending: asyncio.Queue[tuple[Write, asyncio.Future[None]] | None] = asyncio.Queue()
        self._writer: asyncio.Task[None] | None = None

    async def append(
        self, table: GroupTable, clusters: np.ndarray, transcripts: Sequence[Transcript | None] | None = None
    ) -> None:
        """Write groups that the ledger does not hold. Returns when they are on the disk.

        clusters: [N].    transcripts: N of them, or None.
        """
        texts = [
            (self.incarnation, int(table.sequence[row]), table.group_ids[row], text.prompt, json.dumps(text.completions))
            for row, text in enumerate(transcripts or ())
            if text is not None
        ]
        await self._write([("groups", self._group_rows(table, clusters)), ("transcripts", texts)])
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
        }

    async def append_losses(self, groups: Iterable[tuple[int, str]]) -> None:
        """Record that the payloads of these groups, (sequence, id) each, died before they were trained on."""
        await self._write([("losses", [(self.incarnation, *group) for group in groups])])

    async def append_commit(
        self, batch: Batch, policy_version: int, move: PolicyMove | None, closed: Sequence[tuple[int, str]]
    ) -> None:
        """Write one fold into the moments: the batch with its advantages, and (sequence, id) of what was not trained on."""
        table = batch.table
        trained = zip(
            table.sequence.tolist(), table.group_ids, json_rows(batch.advantages, table.sizes),
            batch.baseline.tolist(), batch.scale.tolist(), batch.weight.tolist(), strict=True,
        )  # fmt: skip
        nothing = (None, None, None, None)
        folds = [(self.incarnation, batch.step, *row) for row in trained]
        folds += [(self.incarnation, batch.step, *group, *nothing) for group in closed]
        measured = (None, None) if move is None else (move.kl, move.log_ratio)
        commit = (self.incarnation, batch.step, policy_version, *measured)
        await self._write([("folds", folds), ("commits", [commit])])

    async def close(self) -> None:
        """Finish what is pending, then close the file."""
        if self._writer is not None:
            self._pending.put_nowait(None)
            await self._writer
        self._reader.close()
        self.connection.close()

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
                self._reward_texts.json(table.rewards, table.sizes),
                [None if errors is None else json.dumps(errors) for errors in table.errors],
                json_rows(table.lengths, table.sizes),
                self._truncated_texts.json(table.truncated, table.sizes),
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
            except sqlite3.Error as error:
                for _, written in writes:
                    written.set_exception(RuntimeError(f"ledger {self.path} cannot be written: {error}"))
            else:
                for _, written in writes:
                    if not written.cancelled():
                        written.set_result(None)

    def _transact(self, writes: Iterable[Write]) -> None:
        rows: dict[str, list[Row]] = defaultdict(list)
        for write in writes:
            for table, added in write:
                if added:
                    rows[table] += added
        seal, hashed = self._next_seal, TransactionHash()
        with self.connection:
            for table, added in rows.items():
                added.sort()
                hashed.add_all(table, added)
                insert(self.connection, table, [(*row, seal) for row in added])
            self.connection.execute("INSERT INTO seals VALUES (?, ?, ?)", (seal, hashed.rows, hashed.hexdigest()))
        self._next_seal += 1

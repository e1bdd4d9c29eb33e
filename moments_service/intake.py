"""Where scored groups come in: on the disk before they are acknowledged, each once, then ready to be drawn or closed."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from moments_service.held import Groups, HeldGroups
from moments_service.ledger import Ledger
from moments_service.messages.counts import Counts
from moments_service.messages.groups import GroupStatus, ScoredGroup, Transcript
from moments_service.messages.table import GroupTable
from moments_service.moments import Indices


class Intake:
    """Every group between its submission and its commit. Lives in one event loop.

    counts: of this incarnation so far.    unfolded: what a dead service acknowledged and no commit took in, with clusters.
    """

    def __init__(self, ledger: Ledger, counts: Counts, unfolded: Sequence[tuple[ScoredGroup, int]]) -> None:
        self.counts = counts
        self.ready = HeldGroups()
        self.closed = HeldGroups()
        """Groups that nobody will train on; they wait here for the next commit to enter history."""
        self._ledger = ledger
        # Those of the closed ones that a dead service acknowledged; a sender that tries again brings their payload back.
        self._orphans: set[str] = set()
        # Ids on their way to the disk, and ids between their acknowledgement and their commit; the ledger knows older ones.
        self._writing: dict[str, asyncio.Future[None]] = {}
        self._open: set[str] = set()
        # Given up before they came: their actor may be slow and not dead. Closed when they come; few, since each was lost.
        self._given_up: set[str] = set()
        if unfolded:
            headers, clusters = zip(*unfolded, strict=True)
            self.closed.put(Groups(GroupTable.of(headers), np.array(clusters), [None] * len(headers)))
            self._open.update(group.group_id for group in headers)
            self._orphans.update(group.group_id for group in headers if group.status is GroupStatus.SCORED)

    async def submit(
        self,
        table: GroupTable,
        payloads: Sequence[Any],
        transcripts: Sequence[Transcript | None] | None,
        assign: Callable[[GroupTable], Indices],
    ) -> None:
        """Take groups in; see `MomentsService.submit_table`. assign: the cluster of each row."""
        self._adopt_orphans(table, payloads)
        twins = {writing for group_id in table.group_ids if (writing := self._writing.get(group_id)) is not None}
        rows = self._new_rows(table)
        if len(rows):
            fresh = Groups(table.trimmed(), assign(table), payloads)
            if len(rows) < len(table):
                fresh = fresh.take(rows)
                transcripts = None if transcripts is None else [transcripts[row] for row in rows]
            # A task of its own: whoever sends may give up, the group is taken in all the same.
            storing = asyncio.create_task(self._store(fresh.marked_lost(), transcripts))
            self._writing.update(dict.fromkeys(fresh.table.group_ids, storing))
            await asyncio.shield(storing)
        for writing in twins:
            await asyncio.shield(writing)

    async def mark_lost(self, group_ids: Iterable[str]) -> tuple[str, ...]:
        """Close groups that are ready, and those that are yet to come when they come; see `MomentsService.mark_lost`."""
        known = [group_id for group_id in group_ids if group_id in self.ready]
        self._given_up.update(group_id for group_id in group_ids if group_id not in self._open)
        return await self._close(known)

    def release(self, *groups: Groups) -> None:
        """These groups are history now."""
        for some in groups:
            self._open.difference_update(some.table.group_ids)
            self._orphans.difference_update(some.table.group_ids)

    async def _close(self, ready: Sequence[str]) -> tuple[str, ...]:
        if not ready:
            return ()
        lost = self.ready.take(ready)
        self.closed.put(lost)
        self.counts.lost += len(lost)
        await self._ledger.append_losses(lost.keys())
        return lost.table.group_ids

    def _new_rows(self, table: GroupTable) -> Sequence[int]:
        """Rows that are neither waiting for their commit nor on their way to the disk, each id once."""
        ids = set(table.group_ids)
        taken = (self._open, self._writing.keys())
        if len(ids) == len(table) and all(ids.isdisjoint(known) for known in taken):
            return range(len(table))
        rows: dict[str, int] = {}
        for row, group_id in enumerate(table.group_ids):
            if not any(group_id in known for known in taken):
                rows.setdefault(group_id, row)
        return list(rows.values())

    def _adopt_orphans(self, table: GroupTable, payloads: Sequence[Any]) -> None:
        back = {
            group_id: row
            for row, (group_id, payload) in enumerate(zip(table.group_ids, payloads, strict=True))
            if group_id in self._orphans and group_id in self.closed and payload is not None
        }
        if back:
            adopted = self.closed.take(back)
            self._orphans.difference_update(back)
            rows = [back[group_id] for group_id in adopted.table.group_ids]
            # Of the table that came: the ledger does not keep all of a header.
            self.ready.put(Groups(table.take(rows), adopted.clusters, [payloads[row] for row in rows]))

    async def _store(self, groups: Groups, transcripts: Sequence[Transcript | None] | None) -> None:
        sent = groups.table.group_ids
        try:
            if held := self._ledger.held(groups.table):
                rows = [row for row, group_id in enumerate(sent) if group_id not in held]
                groups = groups.take(rows)
                transcripts = None if transcripts is None else [transcripts[row] for row in rows]
            if not len(groups):
                return
            await self._ledger.append(groups.table, groups.clusters, transcripts)
        finally:
            for group_id in sent:
                del self._writing[group_id]
        await self._acknowledged(groups)

    async def _acknowledged(self, groups: Groups) -> None:
        table = groups.table
        self._open.update(table.group_ids)
        self.counts += Counts(
            groups=len(table),
            completions=int(table.sizes.sum()),
            errors=int((np.isnan(table.rewards) & table.filled()).sum()),
            lost=int(table.lost.sum()),
        )
        trainable = ~table.lost & table.scored()
        if not trainable.all():
            self.closed.put(groups.take(np.flatnonzero(~trainable)))
            groups = groups.take(np.flatnonzero(trainable))
        self.ready.put(groups)
        if self._given_up:
            late = self._given_up.intersection(table.group_ids)
            self._given_up -= late
            await self._close([group_id for group_id in late if group_id in self.ready])

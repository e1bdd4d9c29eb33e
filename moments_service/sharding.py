"""A run's ledger over several shards: each takes what is durable of its clusters, and this is the one who knows which.

What costs is the writing, so that is what is divided; the moments themselves (some hundred bytes a cluster, a microsecond a
group) stay with the service, and with them every number that needs a whole batch.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moments_service.buffer import ReadyGroups
from moments_service.ledger import Ledger, LedgerLimits, RunLedger
from moments_service.ledger.seen import SeenPlaces
from moments_service.messages.batch import Batch
from moments_service.messages.groups import PolicyMove, Transcript
from moments_service.messages.table import GroupTable
from moments_service.moments import Indices

Key = tuple[int, str]
"""(sequence, id) of a group."""


class LedgerShard(Protocol):
    """Writer of one shard's ledger, in this process or in another. See `Ledger` for what the calls mean."""

    def add_commits(self, commits: Sequence[tuple[Any, ...]]) -> None:
        """Returns when they are on the disk. Raises LedgerDamagedError if the shard could not open its ledger."""
        ...

    async def append(
        self, table: GroupTable, clusters: Indices, transcripts: Sequence[Transcript | None] | None
    ) -> None: ...

    async def held(self, table: GroupTable) -> set[str]: ...

    async def append_losses(self, groups: Iterable[Key]) -> None: ...

    async def append_commit(
        self,
        batch: Batch,
        policy_version: int,
        move: PolicyMove | None,
        closed: GroupTable,
        closed_clusters: Indices,
    ) -> None: ...

    async def close(self) -> None: ...


class LocalShard:
    """A shard in this process: its ledger has a writing thread of its own."""

    def __init__(self, directory: Path, incarnation: int, after_step: int, limits: LedgerLimits) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._ledger = Ledger(directory, incarnation, after_step, limits)
        self.append = self._ledger.append
        self.add_commits = self._ledger.add_commits
        self.append_losses = self._ledger.append_losses
        self.append_commit = self._ledger.append_commit
        self.close = self._ledger.close

    async def held(self, table: GroupTable) -> set[str]:
        return self._ledger.held(table)


class ShardedLedger:
    """The ledger of one incarnation over S >= 1 shards. A group belongs to the shard `cluster % S`, all its life.

    The cluster is the one that the group was submitted under: changes of the clusters move no group. So a group that is sent
    again may belong to another cluster by then, and every shard is asked whether it holds it.

    A commit goes to all shards, to those without a group of the batch too, and is acknowledged when all of them have it on
    the disk. Where a crash came in between, the next start gives the others the commit without groups: their groups of that
    batch then enter history with the next commit, like all that nobody trained on. So each group counts exactly once.
    """

    def __init__(self, shards: Sequence[LedgerShard], directories: Sequence[Path], incarnation: int) -> None:
        """directories: of the shards' ledgers, which are open by now."""
        self._shards = shards
        self._seen = SeenPlaces()
        # On the disk, though the append that they were part of failed on another shard and was not acknowledged.
        self._strays: set[str] = set()
        self._committed: set[int] = set()
        """Shards that hold the commit under way."""
        if len(shards) > 1:
            self._complete(directories, incarnation)

    async def append(self, groups: ReadyGroups, transcripts: Sequence[Transcript | None] | None) -> None:
        """Write groups that no shard holds. Returns when all of them are on the disk.

        If it raises, some may be there; they count as not held until they are appended again.
        """
        if len(self._shards) == 1:
            await self._shards[0].append(groups.table, groups.clusters, transcripts)
            return
        parts = self._split(groups)

        async def append_part(shard: LedgerShard, rows: Indices) -> None:
            new = [row for row in rows.tolist() if groups.table.group_ids[row] not in self._strays]
            if new:
                part = groups.take(new)
                texts = None if transcripts is None else [transcripts[row] for row in new]
                await shard.append(part.table, part.clusters, texts)

        calls = [append_part(self._shards[number], rows) for number, rows in parts.items()]
        results = await asyncio.gather(*calls, return_exceptions=True)
        self._seen.add(groups.table.sequence)
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            for result, rows in zip(results, parts.values(), strict=True):
                if result is None:
                    self._strays.update(groups.table.group_ids[row] for row in rows.tolist())
            raise errors[0]
        self._strays.difference_update(groups.table.group_ids)

    async def held(self, table: GroupTable) -> set[str]:
        """Ids of those groups that are on the disk already."""
        if len(self._shards) == 1:
            return await self._shards[0].held(table)
        again = np.flatnonzero(self._seen.contains(table.sequence))
        if not len(again):
            return set()
        asked = table.take(again)
        found = await asyncio.gather(*(shard.held(asked) for shard in self._shards))
        return set().union(*found) - self._strays

    async def append_losses(self, lost: ReadyGroups) -> None:
        """Record that the payloads of these groups died before they were trained on."""
        await _all(
            self._shards[number].append_losses(lost.take(rows).keys()) for number, rows in self._split(lost).items()
        )

    async def append_commit(
        self, batch: Batch, policy_version: int, move: PolicyMove | None, closed: ReadyGroups
    ) -> None:
        """Write one fold into the moments: the batch with its advantages, and what was not trained on.

        If it raises, some shards may hold it; call again with the same batch and the same `closed`.
        """
        if len(self._shards) == 1:
            await self._shards[0].append_commit(batch, policy_version, move, closed.table, closed.clusters)
            return
        closed_of = closed.clusters % len(self._shards)

        async def commit_part(number: int, shard: LedgerShard) -> None:
            if number not in self._committed:
                part = batch.part(np.flatnonzero(batch.clusters % len(self._shards) == number))
                left = closed.take(np.flatnonzero(closed_of == number))
                await shard.append_commit(part, policy_version, move, left.table, left.clusters)
                self._committed.add(number)

        await _all(commit_part(number, shard) for number, shard in enumerate(self._shards))
        self._committed.clear()

    async def close(self) -> None:
        await _all(shard.close() for shard in self._shards)

    def _split(self, groups: ReadyGroups) -> dict[int, Indices]:
        """Rows of each shard that has any."""
        shard_of = groups.clusters % len(self._shards)
        return {number: np.flatnonzero(shard_of == number) for number in np.unique(shard_of).tolist()}

    def _complete(self, directories: Sequence[Path], incarnation: int) -> None:
        reader = RunLedger(directories[0].parent)
        try:
            missing = reader.missing_commits(incarnation)
            for shard, directory in zip(self._shards, directories, strict=True):
                shard.add_commits(missing[directory])
            places = reader.query("SELECT sequence FROM groups WHERE incarnation = ?", (incarnation,))
            self._seen.add(np.array(places, dtype=np.int64).reshape(-1))
        finally:
            reader.close()


async def _all(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for every call, then raise the first error if there is one."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result

"""Scored groups that wait for a batch."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moments_service.groups import PolicyMove
from moments_service.moments import CommittedRewards, Indices
from moments_service.table import GroupTable, join_tables


@dataclass(frozen=True, slots=True)
class ReadyGroup:
    """One row of a table of headers, with its cluster and the handle of its tokens."""

    table: GroupTable
    row: int
    cluster: int
    payload: Any

    @property
    def group_id(self) -> str:
        return self.table.group_ids[self.row]

    def feed_order(self) -> tuple[int, str]:
        return int(self.table.sequence[self.row]), self.table.group_ids[self.row]


def gather_table(ready: Sequence[ReadyGroup]) -> GroupTable:
    """The headers of these groups as one table, in the given order; at least one group."""
    places: dict[int, list[int]] = {}
    tables: dict[int, GroupTable] = {}
    for place, group in enumerate(ready):
        tables[id(group.table)] = group.table
        places.setdefault(id(group.table), []).append(place)
    parts = [tables[key].take([ready[place].row for place in rows]) for key, rows in places.items()]
    order = [place for rows in places.values() for place in rows]
    if order == list(range(len(order))):
        return join_tables(parts)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return join_tables(parts).take(inverse)


def ready_groups(table: GroupTable, clusters: Indices, payloads: Sequence[Any]) -> list[ReadyGroup]:
    """Each row of a table on its own. clusters: [N].    payloads: N of them."""
    return [
        ReadyGroup(table, row, cluster, payload)
        for row, (cluster, payload) in enumerate(zip(clusters.tolist(), payloads, strict=True))
    ]


def committed_rewards(
    table: GroupTable, clusters: Indices, closed: Sequence[ReadyGroup], policy_version: int, move: PolicyMove | None
) -> CommittedRewards:
    """What history takes in of a commit, in feed order: the groups that are trained on, and those that only closed."""
    if closed:
        trained = ready_groups(table, clusters, [None] * len(table))
        entries = sorted([*trained, *closed], key=ReadyGroup.feed_order)
        table = gather_table(entries)
        clusters = np.array([entry.cluster for entry in entries], dtype=np.int64)
    lengths = np.where(table.filled(), table.lengths, np.nan)
    return CommittedRewards(clusters, table.rewards, table.prompt_ids, policy_version, move, lengths)


class GroupBuffer:
    """Producer: submit. Consumer: next_batch. Bounded by the driver's slot budget, which counts every group in here.

    At shutdown whoever waits in `take` is cancelled with its caller; what is left here is in the ledger.
    """

    def __init__(self) -> None:
        self._ready: dict[str, ReadyGroup] = {}
        self._changed = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._ready)

    async def put(self, groups: Iterable[ReadyGroup]) -> None:
        async with self._changed:
            self._ready.update((group.group_id, group) for group in groups)
            self._changed.notify_all()

    async def take(self, count: int) -> list[ReadyGroup]:
        """Wait for `count` groups and remove those that stand first in the feed, in feed order."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._ready) >= count)
            taken = sorted(self._ready.values(), key=ReadyGroup.feed_order)[:count]
            for group in taken:
                del self._ready[group.group_id]
            return taken

    def remove(self, group_ids: Iterable[str]) -> list[ReadyGroup]:
        """Take groups out without a batch; ids that are not here are ignored."""
        return [self._ready.pop(group_id) for group_id in group_ids if group_id in self._ready]

"""Scored groups that wait: for a batch, or for the commit that makes them history."""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moments_service.messages.batch import Batch
from moments_service.messages.groups import PolicyMove
from moments_service.messages.table import GroupTable, join_tables, pick
from moments_service.moments import CommittedRewards, Indices


@dataclass(frozen=True, slots=True)
class ReadyGroups:
    """N headers with the cluster ([N]) and the handle of the tokens (N) of each.

    The columns of the table are no wider than its largest group, so that sums over them come out as in a replay, bit for bit.
    """

    table: GroupTable
    clusters: Indices
    payloads: Sequence[Any]

    @classmethod
    def of(cls, batch: Batch) -> "ReadyGroups":
        return cls(batch.table, batch.clusters, batch.payloads)

    def __len__(self) -> int:
        return len(self.table)

    def marked_lost(self) -> "ReadyGroups":
        """The same groups; those that were scored and have no payload are lost."""
        missing = [row for row, payload in enumerate(self.payloads) if payload is None]
        if not missing:
            return self
        lost = self.table.lost.copy()
        lost[missing] |= self.table.scored()[missing]
        return replace(self, table=replace(self.table, lost=lost))

    def take(self, rows: Sequence[int] | Indices) -> "ReadyGroups":
        """The given rows in the given order."""
        index = np.asarray(rows, dtype=np.int64)
        return ReadyGroups(self.table.take(index), self.clusters[index], pick(self.payloads, index))

    def keys(self) -> list[tuple[int, str]]:
        """(sequence, id) of each group."""
        return list(zip(self.table.sequence.tolist(), self.table.group_ids, strict=True))


def join(parts: Sequence[ReadyGroups]) -> ReadyGroups:
    """All rows of all parts, of which there is at least one."""
    if len(parts) == 1:
        return parts[0]
    return ReadyGroups(
        join_tables([part.table for part in parts]),
        np.concatenate([part.clusters for part in parts]),
        [payload for part in parts for payload in part.payloads],
    )


def feed_order(table: GroupTable) -> Indices:
    """[N]: the rows sorted by (sequence, id)."""
    order = np.argsort(table.sequence, kind="stable")
    sequence = table.sequence[order]
    if (sequence[1:] == sequence[:-1]).any():
        # Two attempts at one place in the feed.
        keys = list(zip(table.sequence.tolist(), table.group_ids, strict=True))
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
    return order


def in_feed_order(groups: ReadyGroups) -> ReadyGroups:
    """The same groups sorted by (sequence, id)."""
    order = feed_order(groups.table)
    return groups if (order[1:] > order[:-1]).all() else groups.take(order)


def committed_rewards(
    trained: ReadyGroups, closed: ReadyGroups | None, policy_version: int, move: PolicyMove | None
) -> CommittedRewards:
    """What history takes in of a commit, in feed order: the groups that are trained on, and those that only closed.

    trained: in feed order.
    """
    groups = trained
    if closed is not None:
        groups = in_feed_order(join([trained, closed]))
    table = groups.table
    lengths = np.where(table.filled(), table.lengths, np.nan)
    return CommittedRewards(groups.clusters, table.rewards, table.prompt_ids, policy_version, move, lengths)


class GroupStore:
    """Groups as they came, handed out in feed order. An id is in here once; that is for its owner to see to."""

    def __init__(self) -> None:
        self._parts: list[ReadyGroups] = []

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def put(self, groups: ReadyGroups) -> None:
        if len(groups):
            self._parts.append(groups)

    def all(self) -> ReadyGroups | None:
        """Every group in feed order; None if there is none."""
        return in_feed_order(join(self._parts)) if self._parts else None

    def take_all(self, like: ReadyGroups) -> ReadyGroups:
        """Remove every group, in feed order. like: any groups, for the columns of none at all."""
        groups = self.all()
        self._parts = []
        return like.take([]) if groups is None else groups

    def take(self, count: int) -> ReadyGroups:
        """Remove the `count` groups that stand first in the feed, in feed order. There are so many, and at least one."""
        sequences = np.concatenate([part.table.sequence for part in self._parts])
        last = np.partition(sequences, count - 1)[count - 1]
        chosen, kept = [], []
        for part in self._parts:
            first = part.table.sequence <= last
            if first.all():
                chosen.append(part)
            elif not first.any():
                kept.append(part)
            else:
                chosen.append(part.take(np.flatnonzero(first)))
                kept.append(part.take(np.flatnonzero(~first)))
        groups = in_feed_order(join(chosen))
        if len(groups) > count:  # several attempts at the last place
            kept.append(groups.take(range(count, len(groups))))
            groups = groups.take(range(count))
        self._parts = kept
        return groups

    def remove(self, group_ids: Collection[str]) -> ReadyGroups | None:
        """Take groups out; ids that are not here are ignored. None if none of them is."""
        wanted = set(group_ids)
        removed, kept = [], []
        for part in self._parts:
            out = [row for row, group_id in enumerate(part.table.group_ids) if group_id in wanted]
            if not out:
                kept.append(part)
                continue
            removed.append(part.take(out))
            if len(out) < len(part):
                kept.append(part.take(np.setdiff1d(np.arange(len(part)), out)))
        self._parts = kept
        return join(removed) if removed else None

    def errors(self) -> Iterable[tuple[str | None, ...] | None]:
        """Why completions of each group have no reward; None for a group without errors."""
        return (errors for part in self._parts for errors in part.table.errors)


class GroupBuffer:
    """Producer: submit. Consumer: next_batch. Bounded by the driver's slot budget, which counts every group in here.

    At shutdown whoever waits in `take` is cancelled with its caller; what is left here is in the ledger.
    """

    def __init__(self) -> None:
        self._ready = GroupStore()
        self._changed = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._ready)

    async def put(self, groups: ReadyGroups) -> None:
        """Groups whose ids are not in here."""
        async with self._changed:
            self._ready.put(groups)
            self._changed.notify_all()

    async def take(self, count: int) -> ReadyGroups:
        """Wait for `count` groups and remove those that stand first in the feed, in feed order."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._ready) >= count)
            return self._ready.take(count)

    def remove(self, group_ids: Collection[str]) -> ReadyGroups | None:
        """Take groups out without a batch; ids that are not here are ignored. None if none of them is."""
        return self._ready.remove(group_ids)

"""Scored groups that wait: to be drawn, or for the commit that makes them history."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moments_service.messages.batch import Batch
from moments_service.messages.groups import PolicyMove
from moments_service.messages.table import GroupTable, join_tables, pick
from moments_service.moments import CommittedRewards, Indices


@dataclass(frozen=True, slots=True)
class Groups:
    """N rows of a table with the cluster ([N]) and the handle of the tokens (N) of each.

    The columns of the table are no wider than its largest group, so that sums over them come out as in a replay, bit for bit.
    """

    table: GroupTable
    clusters: Indices
    payloads: Sequence[Any]

    @classmethod
    def none(cls) -> "Groups":
        return cls(GroupTable.of([]), np.zeros(0, dtype=np.int64), ())

    @classmethod
    def of(cls, batch: Batch) -> "Groups":
        return cls(batch.table, batch.clusters, batch.payloads)

    def __len__(self) -> int:
        return len(self.table)

    def marked_lost(self) -> "Groups":
        """The same groups; those that were scored and have no payload are lost."""
        missing = [row for row, payload in enumerate(self.payloads) if payload is None]
        if not missing:
            return self
        lost = self.table.lost.copy()
        lost[missing] |= self.table.scored()[missing]
        return replace(self, table=replace(self.table, lost=lost))

    def take(self, rows: Sequence[int] | Indices) -> "Groups":
        """The given rows in the given order."""
        index = np.asarray(rows, dtype=np.int64)
        return Groups(self.table.take(index), self.clusters[index], pick(self.payloads, index))

    def keys(self) -> list[tuple[int, str]]:
        """(sequence, id) of each group."""
        return list(zip(self.table.sequence.tolist(), self.table.group_ids, strict=True))

    def in_feed_order(self) -> "Groups":
        """The same groups sorted by (sequence, id)."""
        order = feed_order(self.table)
        return self if (order[1:] > order[:-1]).all() else self.take(order)


def join(parts: Sequence[Groups]) -> Groups:
    """All rows of all parts."""
    if not parts:
        return Groups.none()
    if len(parts) == 1:
        return parts[0]
    return Groups(
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


def committed_rewards(
    trained: Groups, closed: Groups, policy_version: int, move: PolicyMove | None
) -> CommittedRewards:
    """What history takes in of a commit, in feed order: the groups that are trained on, and those that only closed.

    trained: in feed order.
    """
    groups = join([trained, closed]).in_feed_order() if len(closed) else trained
    table = groups.table
    lengths = np.where(table.filled(), table.lengths, np.nan)
    return CommittedRewards(
        groups.clusters,
        table.rewards,
        table.prompt_ids,
        policy_version,
        move,
        lengths,
        born=table.policy_versions[:, 0],
    )


class HeldGroups:
    """Groups by their ids, each once; that is for its owner to see to.

    Producer: submit. Consumer: draw, or the commit that takes in what was closed. Bounded by the slots of the driver, which counts
    every group in here. At shutdown what is left is in the ledger.
    """

    def __init__(self) -> None:
        # Rows stay in the tables they came in until they leave; a table is forgotten with the last of its rows.
        self._place: dict[str, tuple[Groups, int]] = {}

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, group_id: str) -> bool:
        return group_id in self._place

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def put(self, groups: Groups) -> None:
        self._place.update((group_id, (groups, row)) for row, group_id in enumerate(groups.table.group_ids))

    def take(self, group_ids: Iterable[str]) -> Groups:
        """Remove these groups; in feed order. Raises KeyError, and removes nothing, where one is not here."""
        leaving = list(group_ids)
        places = [self._place[group_id] for group_id in leaving]
        for group_id in leaving:
            del self._place[group_id]
        return _rows(places)

    def take_all(self) -> Groups:
        """Remove every group; in feed order."""
        groups = self.all()
        self._place = {}
        return groups

    def all(self) -> Groups:
        """Every group, in feed order."""
        return _rows(self._place.values())

    def errors(self) -> Iterator[tuple[str | None, ...] | None]:
        """Why completions of each group have no reward; None for a group without errors."""
        return (groups.table.errors[row] for groups, row in self._place.values())


def _rows(places: Iterable[tuple[Groups, int]]) -> Groups:
    """Single rows of many tables, in feed order."""
    rows_of: dict[int, tuple[Groups, list[int]]] = {}
    for groups, row in places:
        rows_of.setdefault(id(groups), (groups, []))[1].append(row)
    parts = [groups if rows == list(range(len(groups))) else groups.take(rows) for groups, rows in rows_of.values()]
    return join(parts).in_feed_order()

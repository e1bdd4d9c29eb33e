"""Scored groups that wait for a batch."""

import asyncio
from dataclasses import dataclass
from typing import Any

from moments_service.groups import ScoredGroup


@dataclass(frozen=True, slots=True)
class ReadyGroup:
    """A group in the buffer: its header, its cluster, and the handle of its tokens."""

    header: ScoredGroup
    cluster: int
    payload: Any


class GroupBuffer:
    """Producer: submit. Consumer: next_batch. Bounded by the driver's slot budget, which counts every group in here.

    At shutdown whoever waits in `take` is cancelled with its caller; what is left here is in the ledger.
    """

    def __init__(self) -> None:
        self._ready: dict[str, ReadyGroup] = {}
        self._changed = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._ready)

    async def put(self, group: ReadyGroup) -> None:
        async with self._changed:
            self._ready[group.header.group_id] = group
            self._changed.notify_all()

    async def take(self, count: int) -> list[ReadyGroup]:
        """Wait for `count` groups and remove those that stand first in the feed, in feed order."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._ready) >= count)
            taken = sorted(self._ready.values(), key=lambda group: (group.header.sequence, group.header.group_id))[
                :count
            ]
            for group in taken:
                del self._ready[group.header.group_id]
            return taken

    def remove(self, group_ids: tuple[str, ...]) -> list[ReadyGroup]:
        """Take groups out without a batch; ids that are not here are ignored."""
        return [self._ready.pop(group_id) for group_id in group_ids if group_id in self._ready]

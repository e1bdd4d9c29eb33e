"""Scored groups on their way to the moments service: those that wait while a call is under way travel together."""

import asyncio
from dataclasses import dataclass
from typing import Any

from moments_service.messages.groups import ScoredGroup, Transcript
from moments_service.messages.table import GroupTable


@dataclass(frozen=True, slots=True)
class _Waiting:
    header: ScoredGroup
    payload: Any
    transcript: Transcript | None
    acknowledged: "asyncio.Future[None]"


class GroupSender:
    """One call at a time to `moments`, the MomentsActor, with every group that is waiting: a call costs the service far more
    than a group in it.

    Producer: the actor's rollouts. Consumer: the service. Bounded by the driver's slot budget. Ends with the last group.
    """

    def __init__(self, moments: Any) -> None:
        self._moments = moments
        self._waiting: list[_Waiting] = []
        self._sending: asyncio.Task[None] | None = None

    async def submit(self, header: ScoredGroup, payload: Any, transcript: Transcript | None) -> None:
        """Returns when the service has acknowledged the group. Raises what its call raised.

        payload: reference to the tokens; None for a group that nobody can train on.
        """
        acknowledged = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(header, payload, transcript, acknowledged))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send(), name="group-sender")
        await acknowledged

    async def _send(self) -> None:
        while self._waiting:
            sending, self._waiting = self._waiting, []
            try:
                # Lists, in which Ray hands over references and not their objects.
                await self._moments.submit_table.remote(
                    GroupTable.of([group.header for group in sending]),
                    [group.payload for group in sending],
                    [group.transcript for group in sending],
                )
            except Exception as error:
                for group in sending:
                    if not group.acknowledged.cancelled():
                        group.acknowledged.set_exception(error)
            else:
                for group in sending:
                    if not group.acknowledged.cancelled():
                        group.acknowledged.set_result(None)
        self._sending = None

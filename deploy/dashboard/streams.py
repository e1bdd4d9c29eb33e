"""Streams of events: so many at once, and no more; who gets none asks again, or asks for the run now and then."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from deploy.dashboard.connections import Limits
from deploy.dashboard.problems import busy


class Streams:
    """How many are open, in all and for each client. Used by one event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._of_client: Counter[str] = Counter()

    def enter(self, client: str) -> bool:
        """Whether there is room for one more."""
        limits = self.limits
        if self._of_client.total() >= limits.streams or self._of_client[client] >= limits.streams_of_a_client:
            return False
        self._of_client[client] += 1
        return True

    def leave(self, client: str) -> None:
        self._of_client[client] -= 1
        if not self._of_client[client]:
            del self._of_client[client]


class BoundedStream(EventSourceResponse):
    """Events, where there is room for one more stream; else 503, and when to ask again."""

    def __init__(self, streams: Streams, events: AsyncIterator[ServerSentEvent], **options: Any) -> None:
        """options: of EventSourceResponse."""
        super().__init__(events, send_timeout=streams.limits.send_s, **options)
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope["client"][0] if scope.get("client") else ""
        if not self._streams.enter(client):
            await busy("as many pages follow runs as this server tells; ask for the run itself")(scope, receive, send)
            return
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.leave(client)

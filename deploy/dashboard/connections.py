"""Connections of the dashboard: how many, how long they may say nothing, and who goes when there is no room."""

import asyncio
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

RETRY_AFTER_S = 5
_LINGER_S = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one server. A browser opens six connections to a server at most."""

    connections: int = 256
    of_a_client: int = 128
    """Connections of one address, which may be a proxy or a tunnel with people behind it."""
    header_s: float = 10.0
    """From the beginning of a request, or of a connection, to the end of the request's headers."""
    keep_alive_s: int = 15
    """Between two requests of a connection."""
    body_s: float = 10.0
    """For the body of a request that has one."""
    send_s: float = 30.0
    """For who reads nothing of what it asked for."""
    streams: int = 64
    streams_of_a_client: int = 16
    header_bytes: int = 16 * 2**10


LIMITS = Limits()


class Connections:
    """Those that are open. Where there is no room, the one that has been idle longest makes it; none is idle: 503."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self._open: dict[BoundedProtocol, str] = {}
        self._of_client: Counter[str] = Counter()

    def enter(self, connection: "BoundedProtocol", client: str) -> bool:
        """Whether there is room for one more."""
        full = self._of_client[client] >= self.limits.of_a_client
        if full or len(self._open) >= self.limits.connections:
            idle = [one for one, address in self._open.items() if one.idle and (address == client or not full)]
            if not idle:
                return False
            oldest = min(idle, key=lambda one: one.idle_since)
            self.leave(oldest)
            oldest.end()
        self._open[connection] = client
        self._of_client[client] += 1
        return True

    def leave(self, connection: "BoundedProtocol") -> None:
        """It has ended, or is about to."""
        client = self._open.pop(connection, None)
        if client is not None:
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]


class BoundedProtocol(H11Protocol):
    """uvicorn's connection with an end: also for who sends no request, half of one, or reads no answer."""

    def __init__(self, connections: Connections, **options: Any) -> None:
        """options: of uvicorn."""
        super().__init__(**options)
        self._all = connections
        self._limits = connections.limits
        self._header_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._refused = False
        self.idle_since = math.inf
        """When it began to wait for a request, by the loop's clock."""

    @property
    def idle(self) -> bool:
        """Whether it is not being answered."""
        return self.cycle is None or self.cycle.response_complete

    def end(self) -> None:
        """Close it, whatever was sent is not waited for."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._all.enter(self, self.client[0] if self.client is not None else ""):
            self._wait_for_request()
        else:
            self._refuse(503, "the server has all the connections that it takes; try again soon")

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.leave(self)
        for timer in (self._header_timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        if self.idle and self._header_timer is None:
            self._wait_for_request()
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if not self.idle and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        self._end_if_unread()

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        super().on_response_complete()
        self._end_if_unread()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._end_if_unread()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._end_unless_read()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None and not self.transport.is_closing():
            self._send_timer.cancel()
            self._send_timer = None

    def _wait_for_request(self) -> None:
        self.idle_since = self.loop.time()
        self._header_timer = self.loop.call_later(self._limits.header_s, self._late)

    def _late(self) -> None:
        self._header_timer = None
        if self.idle and not self._refused and not self.transport.is_closing():
            self._refuse(408, f"no whole request in {self._limits.header_s:g} s")

    def _refuse(self, status: int, sentence: str) -> None:
        phrase = {408: "Request Timeout", 503: "Service Unavailable"}[status]
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {len(sentence)}\r\n"
            f"retry-after: {RETRY_AFTER_S}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write((head + sentence).encode())
        # Closed at once, a request that nobody read would take the answer with it.
        self._refused = True
        self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.end)

    def _end_if_unread(self) -> None:
        """A transport that is closed waits until all was read; not for ever."""
        if self.transport.is_closing():
            self._end_unless_read()

    def _end_unless_read(self) -> None:
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(self._limits.send_s, self.end)

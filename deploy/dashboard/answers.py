"""Answers that cost something: worked out once while their files are the same, a few at a time, and kept as long as there is room."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import msgspec

MOST_BYTES = 32 * 2**20
"""Of all that are kept."""


class BusyError(RuntimeError):
    """Too much is being worked out already, or this very answer still is; ask again."""


class Answers:
    """JSON by what was asked. Safe from several threads.

    Waits for: a place among `at_once`, and whoever works out the same answer, at most `wait_s` seconds; then raises BusyError.
    """

    def __init__(self, at_once: int, wait_s: float, most_bytes: int = MOST_BYTES) -> None:
        self._wait_s = wait_s
        self._most_bytes = most_bytes
        self._places = threading.BoundedSemaphore(at_once)
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Hashable, bytes]] = OrderedDict()
        self._in_work: dict[Hashable, threading.Event] = {}
        self._bytes = 0

    def get(self, key: Hashable, stamp: Hashable, make: Callable[[], Any]) -> bytes:
        """The answer to `key` as of `stamp`, which is another whenever a file behind it is. Raises BusyError, and as `make`."""
        while True:
            with self._lock:
                if key in self._kept and self._kept[key][0] == stamp:
                    self._kept.move_to_end(key)
                    return self._kept[key][1]
                others = self._in_work.get(key)
                if others is None:
                    mine = self._in_work[key] = threading.Event()
                    break
            if not others.wait(self._wait_s):
                raise BusyError("that is still being worked out; ask again in a moment")
        try:
            if not self._places.acquire(timeout=self._wait_s):
                raise BusyError("the server is busy with what others asked; ask again in a moment")
            try:
                found = msgspec.json.encode(make())
            finally:
                self._places.release()
            self._keep(key, stamp, found)
            return found
        finally:
            with self._lock:
                del self._in_work[key]
            mine.set()

    def _keep(self, key: Hashable, stamp: Hashable, found: bytes) -> None:
        with self._lock:
            self._bytes += len(found) - len(self._kept.pop(key, (None, b""))[1])
            self._kept[key] = stamp, found
            while self._bytes > self._most_bytes:
                self._bytes -= len(self._kept.popitem(last=False)[1][1])

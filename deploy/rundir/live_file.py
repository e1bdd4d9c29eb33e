"""live.json: queues and moments as of the last step, for whoever watches a run without talking to it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from moments_service import durable

SHARE = 0.01
"""Most of the driver's time that writing may take; where the moments are large, it is written less often than every step."""


class LiveFile:
    """Writer of one file that is always whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._not_before = 0.0

    def due(self) -> bool:
        """Whether writing it now keeps within its share of the time."""
        return time.monotonic() >= self._not_before

    @contextmanager
    def charged(self) -> Iterator[None]:
        """What happens in here belongs to the file's share of the time."""
        started = time.monotonic()
        yield
        ended = time.monotonic()
        self._not_before = max(self._not_before, ended + (ended - started) / SHARE)

    def write(self, state: dict[str, Any]) -> None:
        """Replace the file. state: anything JSON; NaN becomes null. `written_at` (seconds since the epoch) is added."""
        durable.write_bytes(self.path, msgspec.json.encode({"written_at": time.time(), **state}))

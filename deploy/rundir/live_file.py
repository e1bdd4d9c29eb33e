"""live.json: queues and moments as of the last step, for whoever watches a run without talking to it."""

import time
from pathlib import Path
from typing import Any

import msgspec

SHARE = 0.01
"""Most of the driver's time that writing may take; where the moments are large, it is written less often than every step."""


class LiveFile:
    """Writer of one file that is always whole: it is written beside its place and renamed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._not_before = 0.0

    def write(self, state: dict[str, Any], force: bool = False) -> None:
        """Replace the file, unless that would take more than its share of the time. force: in any case.

        state: anything JSON; NaN becomes null. `written_at` (seconds since the epoch) is added.
        """
        started = time.monotonic()
        if started < self._not_before and not force:
            return
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_bytes(msgspec.json.encode({"written_at": time.time(), **state}))
        partial.rename(self.path)
        ended = time.monotonic()
        self._not_before = ended + (ended - started) / SHARE

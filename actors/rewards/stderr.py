"""What a verifier process writes to its stderr: the end is kept for its error, the rest is counted and dropped."""

import asyncio
import contextlib
import os

from actors.redaction import redacted
from actors.rewards.protocol import MAX_READ, MAX_REASON

READ = 2**16
"""Bytes that are read at once; as many as a pipe holds."""


class StderrTail:
    """The reading end of a pipe, within the event loop that made it.

    Consumes: everything that is written. Keeps: the last `MAX_READ` bytes since `forget`. Ends: with `close`, or the pipe.
    """

    def __init__(self) -> None:
        self._handle, self.far_end = os.pipe()
        os.set_blocking(self._handle, False)
        self._kept, self._written, self._open = b"", 0, True
        asyncio.get_running_loop().add_reader(self._handle, self._read)

    def forget(self) -> None:
        """Whatever was written so far belongs to what is over."""
        self._drain()
        self._kept, self._written = b"", 0

    def said(self) -> str:
        """What was written, for the end of an error; "" where nothing was."""
        self._drain()
        text = " ".join(self._kept.decode(errors="replace").split())
        if not text:
            return ""
        cut = f" ({self._written} bytes, the rest is dropped)" if self._written > len(self._kept) else ""
        # The end says most: it is the last line of a traceback.
        return f"; its stderr{cut} ends: {redacted(text)[-MAX_REASON:]}"

    def close(self) -> None:
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._handle)
            os.close(self._handle)

    def _drain(self) -> None:
        # A pipe is full after one READ; who writes faster than this reads is not waited for.
        for _ in range(4):
            self._read()

    def _read(self) -> None:
        if not self._open:
            return
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._handle, READ)
            if not data:
                self.close()
            self._written += len(data)
            self._kept = (self._kept + data)[-MAX_READ:]

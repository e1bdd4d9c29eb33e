"""Output that nobody can read any more, because its terminal was closed, or the `tee` or `head` behind it ended, is lost.

It ends no run; a command that only looks is done then."""

import errno
import io
import os
import select
import sys
from typing import Any, TextIO

_NOBODY_READS = (errno.EIO, errno.EPIPE)


class _LastingFile(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
            return len(memoryview(data).cast("B"))


def outlast_readers() -> None:
    """Let standard output and standard error of this process outlast whoever reads them."""
    sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)


def nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has ended; what was not yet written into it is dropped then."""
    poll = select.poll()
    poll.register(1, 0)  # of its errors alone, which are always told
    left = any(event & select.POLLERR for _, event in poll.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return left


def _lasting(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:  # it is in memory, where nobody leaves
        return stream
    stream.flush()
    file = io.BufferedWriter(_LastingFile(descriptor, "w", closefd=False))
    return io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=True)

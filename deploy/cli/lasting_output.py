"""Output that nobody can read any more, because its terminal was closed or the `tee` behind it was killed, is lost, and ends no run."""

import errno
import io
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

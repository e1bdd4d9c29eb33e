"""SQLite's write-ahead log, read before SQLite opens it.

SQLite takes the frames up to the first one that does not check, and forgets the rest without a word. Where the rest is the
unfinished write of a process that was killed, that is right. Where finished transactions follow, they were acknowledged,
and losing them in silence is not. Format: https://www.sqlite.org/fileformat2.html#walformat
"""

import struct
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_LITTLE_ENDIAN_MAGIC = 0x377F0682
_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class WalReport:
    """What stands in a write-ahead log. Frames are pages; a transaction is a run of frames that ends in a commit."""

    good_frames: int = 0
    """Frames of finished transactions that check."""
    torn_frames: int = 0
    """Frames after them that belong to no finished transaction; SQLite cuts them off."""
    damaged_frame: int | None = None
    """The first frame that does not check although a finished transaction follows it."""


def inspect_wal(path: Path) -> WalReport:
    """Check every frame of the log at `path`; an absent or empty log is good."""
    data = path.read_bytes() if path.exists() else b""
    if len(data) < _HEADER.size:
        return WalReport(torn_frames=1 if data else 0)
    magic, _, page_size, _, salt1, salt2, sum1, sum2 = _HEADER.unpack_from(data)
    words = "<" if magic == _LITTLE_ENDIAN_MAGIC else ">"
    running = _checksum(data[:24], words, (0, 0))
    if running != (sum1, sum2):
        return WalReport(damaged_frame=0) if len(data) > _HEADER.size else WalReport(torn_frames=1)
    frames = good = 0
    first_bad: int | None = None
    position = _HEADER.size
    while position + _FRAME.size <= len(data):
        _, size_after_commit, frame_salt1, frame_salt2, sum1, sum2 = _FRAME.unpack_from(data, position)
        if (frame_salt1, frame_salt2) != (salt1, salt2):
            break  # left over from before the log was last started again
        frames += 1
        page = data[position + _FRAME.size : position + _FRAME.size + page_size]
        if first_bad is None:
            running = _checksum(data[position : position + 8] + page, words, running)
            if running != (sum1, sum2) or len(page) < page_size:
                first_bad = frames
            elif size_after_commit:
                good = frames
        elif size_after_commit:
            return WalReport(good, 0, first_bad)
        position += _FRAME.size + page_size
    return WalReport(good, frames - good)


def _checksum(data: bytes, words: str, start: tuple[int, int]) -> tuple[int, int]:
    first, second = start
    numbers = struct.unpack(f"{words}{len(data) // 4}I", data[: len(data) // 4 * 4])
    for i in range(0, len(numbers) - 1, 2):
        first = (first + numbers[i] + second) & _MASK
        second = (second + numbers[i + 1] + first) & _MASK
    return first, second

"""Which closed parts were checked row by row already: beside each a checksum of its bytes, as `b2sum` writes it.

Reading a file is some fifty times faster than checking its rows, and a closed part never changes. Where the checksum is
missing or another, the rows are checked again, and they decide.
"""

import hashlib
from pathlib import Path

from moments_service.durable import write_text


def remember_checked(path: Path) -> None:
    """Every row of this finished part was checked and is whole."""
    write_text(_beside(path), _line(path))


def was_checked(path: Path) -> bool:
    """Whether a part is, byte for byte, one whose rows were checked."""
    beside = _beside(path)
    return beside.exists() and beside.read_text(encoding="utf-8") == _line(path)


def _beside(path: Path) -> Path:
    return path.with_suffix(".b2")


def _line(path: Path) -> str:
    with path.open("rb") as file:
        return f"{hashlib.file_digest(file, 'blake2b').hexdigest()}  {path.name}\n"

"""Heavy tests run two at a time, and one that measures a time has the machine to itself.

Locks on files that every process of a session sees. Who waits for the whole machine stands in the door, so that nobody else goes in.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_inside = os.open(__file__, os.O_RDONLY)
_door = os.open(Path(__file__).with_name("__init__.py"), os.O_RDONLY)


@contextmanager
def among_others() -> Iterator[None]:
    """Hold a place on the machine."""
    fcntl.flock(_door, fcntl.LOCK_EX)
    fcntl.flock(_inside, fcntl.LOCK_SH)
    fcntl.flock(_door, fcntl.LOCK_UN)
    try:
        yield
    finally:
        fcntl.flock(_inside, fcntl.LOCK_UN)


@contextmanager
def alone() -> Iterator[None]:
    """Within `among_others`: wait until the others have ended their tests, and keep the next ones out meanwhile."""
    fcntl.flock(_door, fcntl.LOCK_EX)
    try:
        fcntl.flock(_inside, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(_inside, fcntl.LOCK_SH)
        fcntl.flock(_door, fcntl.LOCK_UN)

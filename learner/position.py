"""Where a rank is, and how many collectives it has begun: asked from another thread, also while its own hangs."""

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from learner.blame import Whereabouts

_PROJECT = Path(__file__).parents[1]


class Position:
    """What a rank notes about itself. The thread that trains writes; any other asks."""

    def __init__(self) -> None:
        self._noted = "starting", threading.get_ident()

    def note(self, doing: str) -> None:
        """What this thread is about to do."""
        self._noted = doing, threading.get_ident()

    def ask(self) -> Whereabouts:
        """Where the thread is that noted something last. Waits for nothing but the interpreter's lock."""
        doing, thread = self._noted
        return Whereabouts(doing, _own_line(sys._current_frames().get(thread)), collectives_begun())


def collectives_begun() -> int:
    """By this process, over all of its process groups. Ranks begin the same ones in the same order."""
    if not dist.is_initialized():
        return 0
    # Torch's own watchdogs go by these numbers; it has no public name for them, nor types.
    groups: list[Any] = list(distributed_c10d._world.pg_map)
    return sum(group._get_sequence_number_for_group() for group in groups)


def _own_line(frame: FrameType | None) -> str:
    """`file:line` of the innermost call in this project's code; "" where there is none."""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_PROJECT) and "site-packages" not in file.parts:
            return f"{file.relative_to(_PROJECT)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""

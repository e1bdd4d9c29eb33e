"""What keeps the memory of a run's processes, and of the Ray that it starts, from growing with the steps."""

import ctypes
import os

ARENAS = 2
"""Heaps that glibc spreads the threads of one process over. By default it takes up to eight a core, and what one thread freed in one of
them is of no use to a thread in another: processes of thirty threads grow by such holes, step for step, though nothing is kept."""
TASKS_REMEMBERED = 2_000
"""Calls whose course Ray's GCS keeps for people who list them; by default 100,000, some 2 KiB each."""

_M_ARENA_MAX = -8  # malloc.h of glibc


def limit_arenas() -> dict[str, str]:
    """Limit the heaps of this process, before it has its threads; returns the environment that limits those of others.

    MALLOC_ARENA_MAX of the caller's own counts instead. An allocator that is not glibc's is left as it is.
    """
    wanted = os.environ.get("MALLOC_ARENA_MAX", str(ARENAS))
    libc = ctypes.CDLL(None)
    if "MALLOC_ARENA_MAX" not in os.environ and hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, ARENAS)
    return {"MALLOC_ARENA_MAX": wanted}


def limit_task_history() -> None:
    """Tell a Ray that is started after this to keep few of the calls that are over."""
    os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", str(TASKS_REMEMBERED))

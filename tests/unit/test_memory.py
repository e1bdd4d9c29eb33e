"""Threads of a process share few heaps, so that what one frees another can use; and the collector walks little of what it holds."""

import gc
import os
import subprocess
import sys
import weakref

from deploy.run.memory import ARENAS
from moments_service.heap import freeze_heap

HEAPS = """
import ctypes, tempfile, threading
from deploy.run.memory import limit_arenas
{first}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(12)
def take():
    together.wait()
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=take) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(file.read().count(b"<heap nr="))
"""


def heaps(first: str, **environment: str) -> int:
    """How many heaps a process of twelve threads ends with."""
    inherited = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    command = [sys.executable, "-c", HEAPS.format(first=first)]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_threads_share_few_heaps_here_and_in_the_processes_that_inherit_it() -> None:
    assert heaps("") > ARENAS
    assert heaps("limit_arenas()") <= ARENAS
    assert heaps("", MALLOC_ARENA_MAX=str(ARENAS)) <= ARENAS
    assert heaps("assert limit_arenas() == {'MALLOC_ARENA_MAX': '5'}", MALLOC_ARENA_MAX="5") == 5


class Node:
    """Part of a cycle with itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_a_start_left_is_collected_once_and_never_walked_again() -> None:
    garbage, kept = weakref.ref(Node()), Node()
    try:
        freeze_heap()
        assert garbage() is None
        assert gc.get_freeze_count() > 10_000 > 10 * len(gc.get_objects())
        later, seen = weakref.ref(Node()), weakref.ref(kept)
        del kept
        gc.collect()
        assert later() is None and seen() is not None
    finally:
        gc.unfreeze()
    gc.collect()
    assert seen() is None

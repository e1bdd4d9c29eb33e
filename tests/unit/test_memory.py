"""Threads of a process share few heaps, so that what one of them frees another can use."""

import os
import subprocess
import sys

from deploy.run.memory import ARENAS

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

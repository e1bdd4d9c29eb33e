"""Whether Ray itself lives. Without its raylet, or its GCS, a run that goes on is one that nobody will see the end of: Ray tells the
driver after 15 s of the one, and ends it after 60 s without the other."""

import os
import select
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psutil
import ray


class RayDiedError(RuntimeError):
    """A process of Ray that a run cannot do without ended."""


def started_ray() -> dict[int, str]:
    """Names by pid of what the Ray that this process has started cannot do without."""
    names = {"raylet": "raylet", "gcs_server": "GCS"}
    return {child.pid: names[child.name()] for child in psutil.Process().children() if child.name() in names}


def joined_ray() -> dict[int, str]:
    """The raylet of this node, where it is seen from here; the GCS of a cluster may move, and is left to Ray."""
    mine = f"--node_id={ray.get_runtime_context().get_node_id()}"
    found = (process for process in psutil.process_iter(["name", "cmdline"]) if process.info["name"] == "raylet")
    return {process.pid: "raylet" for process in found if mine in (process.info["cmdline"] or ())}


@contextmanager
def watched(processes: Mapping[int, str], on_death: Callable[[RayDiedError], None]) -> Iterator[None]:
    """Watch these processes as long as the block lasts. on_death: called in a thread, when the first one ends."""
    left, ended = os.pipe()
    watches = {os.pidfd_open(pid): (name, pid) for pid, name in processes.items()}
    thread = threading.Thread(target=_wait, args=(left, watches, on_death), name="ray-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(ended)
        if thread is not threading.current_thread():
            thread.join()
        for descriptor in (left, *watches):
            os.close(descriptor)


def _wait(left: int, watches: Mapping[int, tuple[str, int]], on_death: Callable[[RayDiedError], None]) -> None:
    """Waits for: the kernel's word that one has ended. Ends: with that, or with the block of `watched`."""
    poll = select.poll()
    for descriptor in (left, *watches):
        poll.register(descriptor, select.POLLIN)
    ready = {descriptor for descriptor, _ in poll.poll()}
    if left not in ready:
        name, pid = watches[ready.pop()]
        on_death(RayDiedError(f"Ray's {name} (process {pid}) died, and with it every part of the run"))

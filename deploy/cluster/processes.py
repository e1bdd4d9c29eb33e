"""Which processes a run is made of, for those who look at it from outside."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.exceptions import RayError

ANSWER_S = 5.0
"""An actor that does not say where it is within this time is left out: it may be coming back, or busy."""


@dataclass(frozen=True, slots=True)
class RunProcess:
    """One process of a run."""

    role: str
    pid: int
    node: str
    """Address of its Ray node."""


def driver_process() -> RunProcess:
    """This process."""
    return RunProcess("driver", *_here(None))


async def locate(actors: Mapping[str, Any]) -> list[RunProcess]:
    """Where each actor runs; actors: handles by role."""
    asked = {role: actor.__ray_call__.remote(_here) for role, actor in actors.items()}
    found = []
    for role, answer in asked.items():
        try:
            found.append(RunProcess(role, *await asyncio.wait_for(answer, ANSWER_S)))
        except (RayError, TimeoutError):
            continue  # not there now
    return found


def _here(_: Any) -> tuple[int, str]:
    return os.getpid(), ray.util.get_node_ip_address()


def processes_here(live: dict[str, Any]) -> list[dict[str, Any]]:
    """{role, pid, node, state, resident, threads} of the processes in live.json that run on this machine; memory in bytes."""
    found = []
    for process in live.get("processes", ()):
        try:
            running = psutil.Process(process["pid"])
            # Another process may have taken the number of one that has ended.
            if any(title in " ".join(running.cmdline()) for title in ("ray::", "bvblend", "deploy.cli")):
                with running.oneshot():
                    seen = {"state": running.status(), "resident": running.memory_info().rss}
                    found.append(process | seen | {"threads": running.num_threads()})
        except psutil.Error:
            continue  # it has ended, or is on another machine
    return found

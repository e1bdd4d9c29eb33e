"""Which processes a run is made of, for those who look at it from outside."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """{role, pid, node, state, resident, most_resident, threads} of the processes in live.json that run on this machine."""
    found = []
    for process in live.get("processes", ()):
        try:
            fields = _status(process["pid"])
        except OSError:
            continue  # it has ended, or is on another machine
        if fields is not None:
            found.append(process | fields)
    return found


def _status(pid: int) -> dict[str, Any] | None:
    """Memory in bytes and the like; None where another process has taken that number."""
    line = Path(f"/proc/{pid}/cmdline").read_bytes()
    if not any(title in line for title in (b"ray::", b"bvblend", b"deploy.cli")):
        return None
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {
        "state": fields["State"],
        "resident": int(fields["VmRSS"].split()[0]) * 1024,
        "most_resident": int(fields["VmHWM"].split()[0]) * 1024,
        "threads": int(fields["Threads"]),
    }

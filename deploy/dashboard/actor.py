"""The dashboard beside a run, in a Ray actor on the driver's node: for `bvblend train --dashboard` and jobs on a cluster."""

import asyncio
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy.config.recipe import ConfigError
from deploy.dashboard.serve import TOKEN_VARIABLE, Door, address_of, create_server, door, listen


class DashboardActor:
    """The same application as `bvblend dashboard`; it reads the run directory and is part of nothing else."""

    def __init__(self, runs_dir: str, entrance: Door, port: int) -> None:
        """Raises ConfigError where the address cannot be had."""
        self._socket = listen(entrance.host, port)
        self._entrance = entrance
        self._server = create_server(Path(runs_dir), entrance)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Serve from now on, until the process ends. Returns the address to open."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        return address_of(self._entrance.host, self._socket)


def entrance_of(address: str) -> tuple[Door, int]:
    """Who may come in, and the port, of `PORT` or `HOST:PORT`.

    Raises ConfigError where it is neither, and for any but a loopback address without a token: a token that was made up
    here would stand in the log of a job.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"--dashboard {address}: write PORT or HOST:PORT, for example 8420; 0 takes a free one")
    entrance = door(host.strip("[]") or "127.0.0.1")
    if entrance.made_here:
        raise ConfigError(
            f"--dashboard {address}: others can reach that; set {TOKEN_VARIABLE} to the token they have to know"
        )
    return entrance, int(port)


def start_dashboard(entrance: Door, port: int, runs_dir: Path) -> tuple[Any, str]:
    """Start it on this node. Returns its handle, which keeps it, and its address. Raises ConfigError as `DashboardActor`."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(DashboardActor).options(num_cpus=0, scheduling_strategy=here)
    handle: Any = actor.remote(str(runs_dir), entrance, port)
    page: str = ray.get(handle.start.remote())
    return handle, page

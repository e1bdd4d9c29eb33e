"""The dashboard beside a run, in a Ray actor on the driver's node: for `bvblend train --dashboard` and jobs on a cluster."""

import asyncio
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy.config.recipe import ConfigError
from deploy.dashboard.serve import TOKEN_VARIABLE, Access, access_for, address_of, create_server, listen


class DashboardActor:
    """The same application as `bvblend dashboard`; it reads the run directory and is part of nothing else."""

    def __init__(self, runs_dir: str, access: Access, port: int) -> None:
        """Raises ConfigError where the address cannot be had."""
        self._socket = listen(access.host, port)
        self._access = access
        self._server = create_server(Path(runs_dir), access)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Serve from now on, until the process ends. Returns the address to open."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        return address_of(self._access.host, self._socket)


def parse_address(address: str) -> tuple[Access, int]:
    """Who may come in, and the port, of `PORT` or `HOST:PORT`.

    Raises ConfigError where it is neither, and for any but a loopback address without a token: a token that was made up
    here would stand in the log of a job.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"--dashboard {address}: write PORT or HOST:PORT, for example 8420; 0 takes a free one")
    access = access_for(host.strip("[]") or "127.0.0.1")
    if access.new_token:
        raise ConfigError(
            f"--dashboard {address}: others can reach that; set {TOKEN_VARIABLE} to the token they have to know"
        )
    return access, int(port)


def refuse_taken(access: Access, port: int) -> None:
    """Raise ConfigError where the address cannot be had on this node, before there is anything that would have to end."""
    try:
        listen(access.host, port).close()
    except ConfigError as error:
        raise ConfigError(str(error).replace("--port 0", "--dashboard 0")) from None


def start_dashboard(access: Access, port: int, runs_dir: Path) -> tuple[Any, str]:
    """Start it on this node. Returns its handle, which keeps it, and its address. Raises ConfigError as `DashboardActor`."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(DashboardActor).options(num_cpus=0, scheduling_strategy=here)
    handle: Any = actor.remote(str(runs_dir), access, port)
    page: str = ray.get(handle.start.remote())
    return handle, page

"""`bvblend dashboard`: who may reach it, and uvicorn."""

import contextlib
import errno
import ipaddress
import os
import secrets
import signal
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from deploy.config.recipe import ConfigError
from deploy.dashboard.access import LEAST_TOKEN_CHARS
from deploy.dashboard.app import create_app
from deploy.dashboard.connections import LIMITS, BoundedProtocol, Connections, Limits

TOKEN_VARIABLE = "BVBLEND_DASHBOARD_TOKEN"
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class Access:
    """Where the dashboard listens and what it asks for."""

    host: str
    token: str | None
    new_token: bool
    """Whether the token was made up just now: somebody has to read it."""

    @property
    def hosts(self) -> frozenset[str]:
        """Names that a request may be addressed to; any, behind a token."""
        return _LOOPBACK_NAMES if self.token is None else frozenset()


def access_for(host: str) -> Access:
    """Loopback is open; any other address asks for a token: the environment's, else a new one.

    Raises ConfigError for a token that can be guessed.
    """
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and len(token) < LEAST_TOKEN_CHARS:
        raise ConfigError(
            f"{TOKEN_VARIABLE} has {len(token)} characters and could be guessed; use at least {LEAST_TOKEN_CHARS}, or leave it "
            "out and one is made"
        )
    if is_loopback(host):
        return Access(host, token, new_token=False)
    return Access(host, token or secrets.token_urlsafe(24), new_token=token is None)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address. A name that is not `localhost` counts as everybody's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. port 0 takes a free one. Raises ConfigError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host.strip("[]"), port))
        found.listen()  # whoever reads the address that is printed next may come at once
    except (OSError, OverflowError) as error:
        found.close()
        said = error.strerror if isinstance(error, OSError) else error
        remedy = "an address of this machine, or 0.0.0.0 for all of them"
        if isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES):
            remedy = "--port 0 takes a free one"
        raise ConfigError(f"--host {host} --port {port}: {said}; {remedy}") from None
    return found


def create_server(runs_dir: Path, access: Access, limits: Limits = LIMITS) -> uvicorn.Server:
    """The server of a directory of runs, not started. Lines of requests are not logged."""
    protocol: Any = partial(BoundedProtocol, Connections(limits))
    return uvicorn.Server(
        uvicorn.Config(
            create_app(runs_dir, access.token, access.hosts, limits),
            http=protocol,
            ws="none",
            h11_max_incomplete_event_size=limits.header_bytes,
            timeout_keep_alive=limits.keep_alive_s,
            access_log=False,
            log_level="error",
            server_header=False,
            timeout_graceful_shutdown=2,
            lifespan="on",
        )
    )


def serve(runs_dir: Path, access: Access, bound: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # It is the usual way to end it; uvicorn has closed everything, and only says how it was asked to.
    with contextlib.suppress(KeyboardInterrupt):
        create_server(runs_dir, access).run(sockets=[bound])


def address_of(host: str, bound: socket.socket) -> str:
    """What a person types into the browser."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{bound.getsockname()[1]}/"

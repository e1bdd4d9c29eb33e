"""The Ray that a run lives in: somebody else's cluster, or one of its own on this machine."""

import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.cloudpickle
from ray._private import ray_constants, services
from ray.exceptions import AuthenticationError, RpcError

from actors import import_path
from deploy.cluster.address import named_address, ray_to_join
from deploy.cluster.environment import EnvironmentProblemError
from deploy.cluster.ray_home import RayHome, keep_token_private
from deploy.config.models import RunConfig
from deploy.run import ray_messages
from deploy.run.memory import limit_arenas, limit_task_history
from deploy.run.watchdog import start_watchdog

logger = logging.getLogger(__name__)

LONG_NAME = 60
"""Bytes of TMPDIR beyond which the engine's own sockets, and those of Python's multiprocessing, get no name below it."""


@dataclass(frozen=True, slots=True)
class OwnRay:
    """A Ray that was started here; keep it for as long as the driver lives."""

    home: RayHome
    watchdog: "subprocess.Popen[bytes]"

    def keep_logs(self, directory: Path) -> None:
        """Keep the logs of a Ray whose run failed in `directory`."""
        try:
            self.home.keep_logs(directory)
        except OSError as error:  # a full disk must not hide why the run failed
            logger.warning("Ray's logs are not kept in %s: %s", directory, error)

    def close(self) -> None:
        """Let the watchdog end what is left of it, and remove its directory."""
        if self.watchdog.stdin is not None:
            self.watchdog.stdin.close()


def join(address: str | None) -> None:
    """Connect to the Ray cluster at `address`, or at RAY_ADDRESS. Raises EnvironmentProblemError where there is none."""
    where = ray_to_join(address)
    keep_token_private()
    try:
        _init(address=where)
    except (ConnectionError, RuntimeError, ValueError, AuthenticationError, RpcError) as error:
        needs = (
            "it takes the cluster's own RAY_AUTH_TOKEN, RAY_AUTH_MODE=token, the same Ray, and a node on this machine"
        )
        message = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise EnvironmentProblemError(
            f"the Ray cluster at {where} cannot be joined from here: {message}; {needs}"
        ) from None


def connect(config: RunConfig, address: str | None) -> OwnRay | None:
    """Join the Ray cluster at `address` or RAY_ADDRESS; start one on this machine if neither is named, whoever else runs one."""
    if named_address(address) is not None:
        join(address)
        return None
    wanted = config.rollout.actors * config.rollout.cpus + config.learner.world_size * config.learner.cpus
    return start_own(max(os.cpu_count() or 1, int(np.ceil(wanted))))


def start_own(cpus: int) -> OwnRay:
    """Start a Ray that listens on loopback only, with a directory and a token of its own."""
    home = RayHome.create()
    if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(home.write_token())
    keep_token_private()
    if len(os.fsencode(tempfile.gettempdir())) > LONG_NAME:
        os.environ["TMPDIR"] = tempfile.tempdir = str(home.path)
    # The mode in which Ray runs on desktops: the node's address is 127.0.0.1, and every port is bound to it. Said to the
    # processes that Ray starts, and to this one, which has read it.
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    limit_task_history()
    # By default Ray's workers run at 15 and starve beside any other program.
    os.environ.setdefault(ray_constants.RAY_WORKER_NICENESS, "0")
    watchdog = start_watchdog(home.path)
    with _a_session_each():
        _init(address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=str(home.path))
    return OwnRay(home, watchdog)


@contextmanager
def _a_session_each() -> Iterator[None]:
    """Start Ray's daemons in sessions of their own, and with them all that they start: what is sent to the group of the driver, by a
    scheduler, `timeout` or a terminal, asks the driver to end, which ends them in order. Ray blocks SIGINT in them, has no setting for
    the rest, and lets them die with the driver."""
    popen = services.ConsolePopen
    vars(services)["ConsolePopen"] = partial(popen, start_new_session=True)
    try:
        yield
    finally:
        vars(services)["ConsolePopen"] = popen


def _init(**options: Any) -> None:
    ray_messages.shorten()
    # A Ray with a token needs no lecture about it.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    ray.cloudpickle.register_pickle_by_value(import_path)
    ray.init(
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={"worker_process_setup_hook": import_path.load_own_packages, "env_vars": limit_arenas()},
        **options,
    )

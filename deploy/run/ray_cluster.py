"""The Ray that a run lives in: somebody else's cluster, or one of its own on this machine."""

import logging
import os
import subprocess

import numpy as np
import ray

from deploy.cluster.environment import EnvironmentProblemError
from deploy.config.models import RunConfig
from deploy.run.watchdog import start_watchdog


def join(address: str | None) -> None:
    """Connect to the Ray cluster at `address`, or at RAY_ADDRESS. Raises EnvironmentProblemError where there is none."""
    try:
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise EnvironmentProblemError(f"no Ray cluster at {address or os.environ['RAY_ADDRESS']}: {error}") from None


def connect(config: RunConfig, address: str | None) -> "subprocess.Popen[bytes] | None":
    """Join the Ray cluster at `address` or RAY_ADDRESS; start one on this machine if there is neither.

    Returns the watchdog of a Ray that was started here; keep it for as long as the driver lives.
    """
    # A private Ray on loopback needs no lecture about its token.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    if address is not None or os.environ.get("RAY_ADDRESS"):
        join(address)
        return None
    wanted = config.rollout.actors * config.rollout.cpus + config.learner.world_size * config.learner.cpus
    watchdog = start_watchdog()
    ray.init(
        num_cpus=max(os.cpu_count() or 1, int(np.ceil(wanted))),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    return watchdog

"""`ray start` on a machine that may be busy."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

RAY = str(Path(sys.executable).parent / "ray")
START_S = 180.0
STARTS = 4
WORKERS_LIKE_OTHERS = {"RAY_worker_niceness": "0"}
"""By default Ray's workers run at 15 and starve beside any other test."""


def start_ray(
    options: Sequence[str],
    clean_up: Callable[[], None],
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> None:
    """Start a node. clean_up: ends what a failed start left.    prefix: what the command line begins with.

    Ray gives a node 30 s and its agents 15 s of them, which is not enough where every core is taken: then once more.
    """
    command = [*prefix, RAY, "start", *options]
    environment = dict(environment or os.environ) | WORKERS_LIKE_OTHERS
    for left in reversed(range(STARTS)):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_S, check=False)
        if done.returncode == 0:
            return
        clean_up()
        assert left and "timed out during startup" in done.stderr, done.stdout + done.stderr

"""What Ray prints into a driver of its own accord: pages of a raylet's log, or a line for every call that it repeats."""

import logging
from collections.abc import Mapping
from typing import Any

from ray._private import worker

logger = logging.getLogger(__name__)

SAID_OTHERWISE = ("Raylet is terminated", "Task ", "A worker died or was killed")
"""Ray's death is said by `ray_watch`, and a dead actor's by the fleet, with what happens then."""


def shorten() -> None:
    """Print the first line of such a message, or nothing where the run says it better. Ray has no setting for this."""
    worker.print_to_stdstream = _first_lines


def _first_lines(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    for message in data["lines"]:
        first, *_ = message.strip().splitlines() or [""]
        if first and not first.startswith(SAID_OTHERWISE):
            logger.warning("Ray: %s", first)

"""What every place that a run's numbers go to can do, and the numbers themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Numbers = Mapping[str, float]
"""By the names of metrics.jsonl; what lies in a mapping there has its name in front: `phases/learn`."""


class Sink(Protocol):
    """One place that numbers go to. Called by one thread, in the order of the run; may raise errors of its own kind."""

    def log(self, step: int, numbers: Numbers) -> None:
        """Numbers as they are after `step` policy steps."""
        ...

    def alarm(self, step: int, text: str) -> None:
        """Something looks broken."""
        ...

    def close(self, finished: bool) -> None:
        """Nothing comes any more. finished: whether the run made all of its steps."""
        ...


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told when it is opened."""

    name: str
    """Of the run directory, so no two runs of a machine share it."""
    directory: Path
    """The tracker's own, inside the run directory. Empty unless the run is resumed."""
    config: Mapping[str, Any]
    """The resolved configuration; there are no credentials in it."""
    step: int
    """Policy steps done by now; what was logged after that belongs to no history."""


def service_numbers(services: Mapping[str, Any]) -> dict[str, float]:
    """Queues, actors and clusters out of what live.json holds."""
    moments = services["moments"]
    serving = sum(actor["serving"] for actor in services["actors"])
    seen = moments.get("clusters", {}).get("seen", ())
    return {
        "slots": services["slots"],
        "groups/in_flight": services["in_flight"],
        "groups/scored": services["scored"],
        "groups/ready": moments["ready"],
        "actors/serving": serving,
        "actors/away": len(services["actors"]) - serving,
        "restarts": services["restarts"],
        **{f"counts/{name}": value for name, value in moments["counts"].items()},
        "clusters/all": len(seen),
        "clusters/seen": sum(times > 0 for times in seen),
    }

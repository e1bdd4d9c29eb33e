"""What the page shows of the parts of a run: its starts, its services as the driver last saw them, what it stands on."""

import time
from dataclasses import asdict
from functools import cache
from typing import Any

from deploy.cluster.environment import versions
from deploy.cluster.processes import processes_here
from deploy.rundir.config_file import whole_number
from deploy.rundir.lines import read_object
from deploy.rundir.open_run import NoLedgerError, OpenRun


def overview(run: OpenRun) -> dict[str, Any]:
    """Starts, services, checkpoints, versions."""
    live = run.live()
    summary = read_object(run.directory.summary)
    return {
        "incarnations": _incarnations(run),
        "services": _services(live),
        "processes": _processes(live),
        "age_s": max(0.0, time.time() - live["written_at"]) if "written_at" in live else None,
        "policy_version": whole_number(run.metrics.last_row.get("policy_version")),
        "versions": _flat(summary.get("versions")) or _versions(),
        "machine": _flat(summary.get("machine")),
        "checkpoints": run.directory.checkpoint_steps(),
    }


@cache
def _versions() -> dict[str, str]:
    """Looked up once: the metadata of some twenty packages takes 20 ms to read."""
    return versions()


def _flat(found: Any) -> dict[str, Any] | None:
    """Names and single values; None where there are none."""
    if not isinstance(found, dict):
        return None
    return {name: value for name, value in found.items() if value is None or type(value) in (str, int, float, bool)}


def _services(live: dict[str, Any]) -> dict[str, Any]:
    """Queues and actors; without the moments, which have a view of their own."""
    found = {key: live[key] for key in ("slots", "in_flight", "scored", "actors", "restarts") if key in live}
    stats = live.get("moments")
    return found | {key: stats[key] for key in ("ready", "counts") if isinstance(stats, dict) and key in stats}


def _processes(live: dict[str, Any]) -> list[dict[str, Any]]:
    """Every process of the run; with its memory where it is on this machine."""
    here = {process["pid"]: process for process in processes_here(live)}
    return [{"resident": None, "threads": None} | here.get(one["pid"], one) for one in live.get("processes", ())]


def _incarnations(run: OpenRun) -> list[dict[str, Any]]:
    try:
        return [asdict(one) for one in run.groups().incarnations()]
    except NoLedgerError:
        return []

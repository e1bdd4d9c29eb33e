"""What became of a run, from its directory alone: the one answer of `runs`, `top` and the dashboard."""

import time
from pathlib import Path

from deploy.rundir.layout import RunDirectory
from deploy.rundir.lines import read_object
from deploy.rundir.owner import LOCK_FILE, read_owner
from deploy.rundir.reading import stamp_of

BROKEN = "broken"
"""What is said instead where files of a run cannot be read."""
QUIET_AFTER_S = 120.0
"""A run of a version that did not say who runs it is taken for ended when its files have not changed for so long, and for twenty
of its steps."""


def state_of(directory: RunDirectory, seconds_a_step: float | None) -> str:
    """`running`, `paused`, `done`, `failed`, `stopped` (by hand, or in order without a word) or `killed` (without a chance to say so)."""
    owner = read_owner(directory.path)
    if owner is not None and owner.alive:
        return "paused" if directory.paused.exists() else "running"
    began = _changed_s(directory.path / LOCK_FILE)
    newest = max(_changed_s(path) for path in (directory.metrics, directory.live, directory.config))
    summary, ending = _changed_s(directory.summary), _changed_s(directory.ending)
    if owner is not None:
        # What an earlier start left says nothing of the last one.
        summary, ending = (written if written >= began else 0.0 for written in (summary, ending))
    if ending and ending >= max(newest, summary):
        return "stopped" if read_object(directory.ending).get("ending") == "stopped" else "failed"
    if summary and summary >= newest - QUIET_AFTER_S:
        return "done"
    if owner is not None:
        return "killed"
    if began:
        return "stopped"
    if directory.paused.exists():
        return "paused"
    quiet = time.time() - newest > max(QUIET_AFTER_S, 20.0 * (seconds_a_step or 0.0))
    return "stopped" if quiet else "running"


def _changed_s(path: Path) -> float:
    return stamp_of(path)[2] / 1e9

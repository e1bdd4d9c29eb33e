"""All runs of a directory of runs: which there are, and the few that are open."""

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from deploy.config.recipe import ConfigError
from deploy.rundir import lines
from deploy.rundir.config_file import estimator_of, number, read_config, whole_number
from deploy.rundir.layout import RunDirectory
from deploy.rundir.open_run import OpenRun
from deploy.rundir.reading import Stamp, reason, stamp_of
from deploy.rundir.state import BROKEN, state_of

MEMORY_BYTES = 120 * 2**20
"""What the metrics of all open runs may take together; the run that was looked at longest ago goes first."""


_LOG_BYTES = 2**18
"""Of the beginning and of the end of the evaluations: the first and the last are shown."""


class NoRunError(LookupError):
    """There is no run of that name."""


class Catalog:
    """Runs by name. A name from outside is only ever looked up among the directories that are there, never made a path."""

    def __init__(self, directory: Path) -> None:
        """directory: of runs, or one run. Raises ConfigError where there is neither."""
        refuse_no_directory(directory)
        self.directory = directory.resolve()
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenRun] = OrderedDict()
        self._rows: dict[str, tuple[tuple[Stamp, ...], dict[str, Any]]] = {}

    def runs(self) -> dict[str, RunDirectory]:
        """Every run, newest first. Links are not followed: a directory of runs says what it holds, not what it points at."""
        if (self.directory / "config.yaml").is_file():
            return {self.directory.name: RunDirectory(self.directory)}
        with os.scandir(self.directory) as entries:
            found = [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
        times = {path: changed for path in found if (changed := _begun(path)) is not None}
        newest_first = sorted(times, key=lambda path: (times[path], path.name), reverse=True)
        return {path.name: RunDirectory(path) for path in newest_first}

    def open(self, name: str) -> OpenRun:
        """The run of that name. Raises NoRunError."""
        with self._lock:
            run = self._open.get(name)
            if run is None:
                directory = self.runs().get(name)
                if directory is None:
                    raise NoRunError(f"no run of that name in {self.directory}")
                run = self._open[name] = OpenRun(directory)
            self._open.move_to_end(name)
            for other in [one for one, opened in self._open.items() if one != name and not opened.followers]:
                if sum(opened.metrics.nbytes for opened in self._open.values()) <= MEMORY_BYTES:
                    break
                del self._open[other]
            return run

    def rows(self) -> list[dict[str, Any]]:
        """One row a run for the list, newest first."""
        return [self._row(name, directory) for name, directory in self.runs().items()]

    def _row(self, name: str, directory: RunDirectory) -> dict[str, Any]:
        files = (directory.config, directory.metrics, directory.summary, directory.evaluations)
        stamp = tuple(stamp_of(path) for path in files)
        known = self._rows.get(name)
        try:
            if known is None or known[0] != stamp:
                known = self._rows[name] = (stamp, _summary(name, directory))
            return known[1] | {"state": state_of(directory, known[1]["seconds"])}
        except Exception as error:
            # Whatever stands in the files of one run, the others are listed, and it is with its reason.
            return _row_of(name) | {"state": BROKEN, "problem": reason(error)}


def refuse_no_directory(path: Path) -> None:
    """Raises ConfigError where runs cannot be looked for."""
    try:
        with os.scandir(path):
            return
    except OSError as error:
        what = (
            "no such directory"
            if isinstance(error, FileNotFoundError)
            else (error.strerror or "cannot be read").lower()
        )
        raise ConfigError(
            f"{path}: {what}; name the one that runs are made in (runs_dir of the recipe), for example runs"
        ) from None


def _begun(path: Path) -> float | None:
    """When a run's configuration was written, seconds since the epoch; None for a directory that is no run."""
    try:
        return (path / "config.yaml").lstat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return 0.0  # nobody may look: listed, and its row says so


def _row_of(name: str) -> dict[str, Any]:
    """A run that nothing is known of."""
    return {"name": name, "estimator": "", "planned": None, "steps": 0, "seconds": None, "pass_at_1": None, "held_out": None,
            "started": None, "problem": None}  # fmt: skip


def _summary(name: str, directory: RunDirectory) -> dict[str, Any]:
    config = read_config(directory)
    last = next(iter(directory.last_metrics(1)), {})
    lines.tail(directory.alarms, 1)  # whether it can be read
    logs = (
        lines.lineage(lines.head(directory.evaluations, _LOG_BYTES)),
        lines.lineage(lines.tail(directory.evaluations, _LOG_BYTES)),
    )
    held_out = [[row.get("pass_at_1") for row in log if row.get("split") == "held_out"] for log in logs]
    return _row_of(name) | {
        "estimator": estimator_of(config),
        "planned": whole_number(config.get("steps")),
        "steps": (whole_number(last.get("step", -1)) or 0) + 1 if last else 0,
        "seconds": number(last.get("seconds")),
        "pass_at_1": number(last.get("reward/pass_at_1")),
        "held_out": [number(held_out[0][0]), number(held_out[1][-1])] if all(held_out) else None,
        "started": directory.config.stat().st_mtime,
    }

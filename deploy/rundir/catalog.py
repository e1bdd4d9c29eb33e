"""All runs of a directory of runs: which there are, and the few that are open."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from deploy.config.recipe import ConfigError
from deploy.rundir import lines
from deploy.rundir.layout import RunDirectory
from deploy.rundir.open_run import OpenRun, estimator_of, read_config, state_of, whole_number

MEMORY_BYTES = 120 * 2**20
"""What the indexes of all open runs may take together; the run that was looked at longest ago goes first."""


class NoRunError(LookupError):
    """There is no run of that name."""


class Catalog:
    """Runs by name. A name from outside is only ever looked up among the directories that are there, never made a path."""

    def __init__(self, directory: Path) -> None:
        """directory: of runs, or one run. Raises ConfigError where there is neither."""
        if not directory.is_dir():
            raise ConfigError(f"{directory}: no such directory; name the one that runs are made in, for example runs")
        self.directory = directory.resolve()
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenRun] = OrderedDict()
        self._rows: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {}

    def runs(self) -> dict[str, RunDirectory]:
        """Every run, newest first. Links are not followed: a directory of runs says what it holds, not what it points at."""
        if (self.directory / "config.yaml").is_file():
            return {self.directory.name: RunDirectory(self.directory)}
        found = [
            path
            for path in self.directory.iterdir()
            if not path.is_symlink() and path.is_dir() and (path / "config.yaml").is_file()
        ]
        found.sort(key=lambda path: ((path / "config.yaml").stat().st_mtime, path.name), reverse=True)
        return {path.name: RunDirectory(path) for path in found}

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
                if sum(opened.nbytes for opened in self._open.values()) <= MEMORY_BYTES:
                    break
                del self._open[other]
            return run

    def rows(self) -> list[dict[str, Any]]:
        """One row a run for the list, newest first."""
        return [self._row(name, directory) for name, directory in self.runs().items()]

    def _row(self, name: str, directory: RunDirectory) -> dict[str, Any]:
        files = (directory.config, directory.metrics, directory.summary, directory.evaluations)
        stamp = tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in files)
        known = self._rows.get(name)
        if known is None or known[0] != stamp:
            known = self._rows[name] = (stamp, _summary(name, directory))
        row = known[1]
        return row | {"state": state_of(directory, row["steps"], row["seconds"])}


def _summary(name: str, directory: RunDirectory) -> dict[str, Any]:
    config = read_config(directory)
    last = next(iter(directory.last_metrics(1)), {})
    evaluations = [row for row in lines.read(directory.evaluations) if row.get("split") == "held_out"]
    return {
        "name": name,
        "estimator": estimator_of(config),
        "planned": whole_number(config.get("steps")),
        "steps": last.get("step", -1) + 1,
        "seconds": last.get("seconds"),
        "pass_at_1": last.get("reward/pass_at_1"),
        "held_out": [row.get("pass_at_1") for row in (evaluations[0], evaluations[-1])] if evaluations else None,
        "started": directory.config.stat().st_mtime,
    }

"""One run that somebody looks at: its files, followed while they grow."""

import time
from pathlib import Path
from typing import Any

import yaml

from deploy.rundir.groups import RunGroups
from deploy.rundir.layout import RunDirectory
from deploy.rundir.lines import read_object
from deploy.rundir.metrics_index import MetricsIndex

QUIET_AFTER_S = 120.0
"""A run whose files have not changed for so long, and for twenty of its steps, is taken for ended."""
RECENT = 50
"""Steps that the speed of a run is averaged over."""
ALL_OF_IT_S = 60.0
"""What reading a whole run may take, where somebody waits for all of it."""
REQUEST_BUDGET_S = 0.2
"""What one request may spend on reading what is new, where no page follows the run."""


class NoLedgerError(LookupError):
    """The run has no ledger yet."""


class OpenRun:
    """Everything that the views of one run are made of. Safe from several threads."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.name = directory.path.name
        self.config = read_config(directory)
        self.metrics = MetricsIndex(directory.metrics)
        self.followers = 0
        """Pages that are being told what is new; they read it, requests need not."""

    def groups(self) -> RunGroups:
        """Its groups. Raises NoLedgerError."""
        try:
            return RunGroups(self.directory.moments)
        except FileNotFoundError:
            raise NoLedgerError(f"run {self.name} has no ledger yet; it comes with its first groups") from None

    def catch_up(self, budget_s: float) -> bool:
        """Read new steps for about `budget_s` seconds. Returns whether all are in."""
        return self.metrics.catch_up(budget_s)

    def freshen(self) -> None:
        """Before a request is answered: read what is new, unless a page follows the run and that happens anyway."""
        if not self.followers:
            self.catch_up(REQUEST_BUDGET_S)

    @property
    def version(self) -> tuple[int, int]:
        """Changes whenever anything of the run did."""
        return self.metrics.version, _changed_ns(self.directory.live)

    def live(self) -> dict[str, Any]:
        """What the driver last said of its services; empty where it never did."""
        return read_object(self.directory.live)

    def status(self) -> dict[str, Any]:
        """What the head of the page says."""
        metrics = self.metrics
        steps = int(metrics.last_row["step"]) + 1 if metrics.last_row else 0
        planned = whole_number(self.config.get("steps"))
        seconds = metrics.mean_of_last("seconds", RECENT)
        state = state_of(self.directory, steps, seconds)
        left = None if seconds is None or planned is None else max(planned - steps, 0) * seconds
        recent = {
            name: metrics.mean_of_last(name, 10)
            for name in ("reward/pass_at_1", "reward/mean", "signal/own", "signal/grpo", "tokens_per_s", "seconds")
        }
        return {
            "name": self.name,
            "state": state,
            "steps": steps,
            "planned": planned,
            "estimator": estimator_of(self.config),
            "recent": recent,
            "eta_s": left if state == "running" else None,
            "read": metrics.share_read,
            "bad_lines": metrics.bad_lines,
        }


def read_config(directory: RunDirectory) -> dict[str, Any]:
    """The run's configuration as it stands in the file, whatever version wrote it; empty where it cannot be read."""
    try:
        config = yaml.safe_load(directory.config.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def estimator_of(config: dict[str, Any]) -> str:
    """How a run's estimator is called, with its variant where it is not the preset; "" where the configuration does not say."""
    moments = config.get("moments")
    if not isinstance(moments, dict):
        return ""
    estimator = moments.get("estimator", "")
    if not isinstance(estimator, dict):
        return str(estimator)
    name, variant = str(estimator.get("kind", "")), str(estimator.get("variant", "safe"))
    return name if variant == "safe" else f"{name}:{variant}"


def whole_number(value: Any) -> int | None:
    return value if type(value) is int else None


def state_of(directory: RunDirectory, steps: int, seconds_a_step: float | None) -> str:
    """`done`, `paused`, `running`, `failed` or `stopped`, as far as its files tell."""
    newest = max(_changed_ns(path) for path in (directory.metrics, directory.live, directory.config)) / 1e9
    quiet = time.time() - newest > max(QUIET_AFTER_S, 20.0 * (seconds_a_step or 0.0))
    summary = _changed_ns(directory.summary) / 1e9
    if summary and summary >= newest - QUIET_AFTER_S:
        return "done"
    if _changed_ns(directory.ending) / 1e9 >= newest:
        return str(read_object(directory.ending).get("ending", "failed"))
    if directory.paused.exists():
        return "paused"
    return "stopped" if quiet else "running"


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0

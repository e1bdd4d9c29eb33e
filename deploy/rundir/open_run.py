"""One run that somebody looks at: its files, followed while they grow."""

import threading
from pathlib import Path
from typing import Any

from deploy.rundir import lines
from deploy.rundir.config_file import ConfigUnreadableError, estimator_of, read_config, whole_number
from deploy.rundir.groups import RunGroups
from deploy.rundir.layout import RunDirectory
from deploy.rundir.metrics_index import MetricsIndex
from deploy.rundir.reading import NO_FILE, Stamp, reason, stamp_of
from deploy.rundir.shapes import AlarmRow, EvaluationRow, Live, fits
from deploy.rundir.state import BROKEN, state_of

RECENT = 50
"""Steps that the speed of a run is averaged over."""
ALL_OF_IT_S = 60.0
"""What reading a whole run may take, where somebody waits for all of it."""
REQUEST_BUDGET_S = 0.2
"""What one request may spend on reading what is new, where no page follows the run."""
_LOG_BYTES = 4 * 2**20
"""Of the ends of alarms and evaluations that are read."""


class NoLedgerError(LookupError):
    """The run has no ledger yet."""


class OpenRun:
    """Everything that the views of one run are made of. Safe from several threads."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.name = directory.path.name
        self.metrics = MetricsIndex(directory.metrics)
        self.followers = 0
        """Pages that are being told what is new; they read it, requests need not."""
        self._lock = threading.Lock()
        self._config: tuple[Stamp, dict[str, Any], str | None] = (NO_FILE, {}, None)
        self._logs: dict[Path, tuple[Stamp, list[dict[str, Any]], str | None]] = {}

    @property
    def config(self) -> dict[str, Any]:
        """The configuration; empty where it cannot be read, and `problem` says why."""
        return self._read_config()[0]

    @property
    def problem(self) -> str | None:
        """Why a file of the run cannot be read; None where all can."""
        logs = self._log(self.directory.evaluations, EvaluationRow), self._log(self.directory.alarms, AlarmRow)
        return self._read_config()[1] or self.metrics.problem or logs[0][1] or logs[1][1]

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
    def version(self) -> tuple[int, Stamp, Stamp, Stamp]:
        """Changes whenever anything of the run did."""
        files = self.directory
        return self.metrics.version, stamp_of(files.live), stamp_of(files.alarms), stamp_of(files.evaluations)

    @property
    def ledger_stamp(self) -> int:
        """Inode of the ledger's first part: what is folded in it stays as it is."""
        return stamp_of(self.directory.moments / "ledger-000000.sqlite")[0]

    @property
    def config_stamp(self) -> Stamp:
        return stamp_of(self.directory.config)

    @property
    def tokens_stamp(self) -> Stamp:
        """Changes whenever values of tokens were kept."""
        return stamp_of(self.directory.tokens)

    @property
    def moments_stamp(self) -> tuple[Stamp, ...]:
        """Changes whenever the ledger or the moments as the driver last said them did."""
        newest = sorted(self.directory.moments.glob("ledger-*"))[-4:]  # parts before the open one do not change
        files = self.directory
        return tuple(map(stamp_of, (files.moments, files.checkpoints, files.live, files.config, *newest)))

    def state(self) -> str:
        """What became of it, see `state_of`; `broken` where files of it cannot be read."""
        return (
            BROKEN
            if self.problem is not None
            else state_of(self.directory, self.metrics.mean_of_last("seconds", RECENT))
        )

    def live(self) -> dict[str, Any]:
        """What the driver last said of its services; empty where it never did, or something else stands there."""
        found = lines.read_object(self.directory.live)
        return found if fits(found, Live) else {}

    def alarms(self) -> list[dict[str, Any]]:
        """Its alarms, oldest first, without those of a history that a resume left; of very many the last ones."""
        return self._log(self.directory.alarms, AlarmRow)[0]

    def evaluations(self) -> list[dict[str, Any]]:
        """Its evaluations, oldest first, without those of a history that a resume left; of very many the last ones."""
        return lines.lineage(self._log(self.directory.evaluations, EvaluationRow)[0])

    def status(self) -> dict[str, Any]:
        """What the head of the page says."""
        metrics, config, problem = self.metrics, self.config, self.problem
        steps = int(metrics.last_row["step"]) + 1 if metrics.last_row else 0
        planned = whole_number(config.get("steps"))
        seconds = metrics.mean_of_last("seconds", RECENT)
        state = self.state()
        left = None if seconds is None or planned is None else max(planned - steps, 0) * seconds
        recent = {
            name: metrics.mean_of_last(name, 10)
            for name in (
                "reward/pass_at_1",
                "reward/mean",
                "effective_signal/own",
                "effective_signal/grpo",
                "reward/non_uniform",
                "tokens_per_s",
                "seconds",
            )
        }
        return {
            "name": self.name,
            "state": state,
            "problem": problem or metrics.cut,
            "steps": steps,
            "planned": planned,
            "estimator": estimator_of(config),
            "recent": recent,
            "eta_s": left if state == "running" else None,
            "read": metrics.share_read,
            "bad_lines": metrics.bad_lines,
        }

    def _read_config(self) -> tuple[dict[str, Any], str | None]:
        stamp = stamp_of(self.directory.config)
        with self._lock:
            if self._config[0] != stamp or stamp == NO_FILE:
                try:
                    self._config = stamp, read_config(self.directory), None
                except (OSError, ConfigUnreadableError) as error:
                    self._config = stamp, {}, reason(error)
            return self._config[1:]

    def _log(self, path: Path, kind: type) -> tuple[list[dict[str, Any]], str | None]:
        stamp = stamp_of(path)
        with self._lock:
            if path not in self._logs or self._logs[path][0] != stamp:
                try:
                    rows = [row for row in lines.standing(lines.tail(path, _LOG_BYTES)) if fits(row, kind)]
                    self._logs[path] = stamp, rows, None
                except OSError as error:
                    self._logs[path] = stamp, [], reason(error)
            return self._logs[path][1:]

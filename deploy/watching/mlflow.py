"""MLflow: the server that MLFLOW_TRACKING_URI names, else a SQLite store in the run directory."""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from deploy.watching.sink import Numbers, TrackedRun
from moments_service import durable

_PARAMS_AT_ONCE = 100
"""As many as MLflow takes in one call."""
_METRICS_AT_ONCE = 1000
FLUSH_S = 10.0
"""Numbers are sent together, no more often than that: MLflow spends milliseconds on each call."""


class MlflowSink:
    """One MLflow run of the experiment that is called like the recipe; a resume goes on with it.

    SQLite and not a directory of files, which MLflow no longer takes. To look at it:
    `mlflow server --backend-store-uri sqlite:///RUN/trackers/mlflow/mlflow.db`.
    """

    def __init__(self, run: TrackedRun) -> None:
        # What this library would report to its makers concerns the user, who was not asked.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._metric = Metric
        self._waiting: list[Any] = []
        self._sent_at = time.monotonic()
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.directory / 'mlflow.db'}")
        remembered = run.directory / "run_id"
        if remembered.exists():
            self._id = remembered.read_text(encoding="utf-8")
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(self._experiment(run), run_name=run.name).info.run_id
        durable.write_text(remembered, self._id)
        params = [Param(name, value) for name, value in _leaves("", run.config)]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self._id, params=params[start : start + _PARAMS_AT_ONCE])

    def _experiment(self, run: TrackedRun) -> str:
        name = str(run.config["name"])
        known = self._client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        here = None if os.environ.get("MLFLOW_TRACKING_URI") else (run.directory / "artifacts").as_uri()
        return str(self._client.create_experiment(name, artifact_location=here))

    def log(self, step: int, numbers: Numbers) -> None:
        now = int(time.time() * 1000)
        self._waiting += [self._metric(_allowed(name), value, now, step) for name, value in numbers.items()]
        if time.monotonic() - self._sent_at > FLUSH_S:
            self._send()

    def _send(self) -> None:
        for start in range(0, len(self._waiting), _METRICS_AT_ONCE):
            self._client.log_batch(self._id, metrics=self._waiting[start : start + _METRICS_AT_ONCE])
        self._waiting.clear()
        self._sent_at = time.monotonic()

    def alarm(self, step: int, text: str) -> None:
        self._client.set_tag(self._id, "last alarm", f"after step {step}: {text}")

    def close(self, finished: bool) -> None:
        self._send()
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def _leaves(prefix: str, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every value of the configuration by its dotted name, as text."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", str(value)[:6000]


def _allowed(name: str) -> str:
    """A name as MLflow takes it; sources may be called anything."""
    return re.sub(r"[^\w./ :-]", "_", name)

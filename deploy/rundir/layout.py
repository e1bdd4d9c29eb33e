"""A run's directory: the one place that everything about a run is written to and read from."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from deploy.run.evaluation import Evaluation
from moments_service.health import Alarm

CHECKPOINT_PREFIX = "step-"
_TAIL_BYTES = 2**18


class RunDirectory:
    """Paths and small files of one run; `runs/latest` points at the newest.

    config.yaml       the resolved configuration
    metrics.jsonl     one line a step
    evaluations.jsonl one line an evaluation
    alarms.jsonl      one line an alarm, if there was one; paused while a person has to look at it
    live.json         queues and moments as of the last step, replaced as a whole
    moments/          ledger, every version of the clusters, and the moments at the end in final/
    checkpoints/      step-000050/ and so on, complete or absent
    policy/           the final policy, a Hugging Face directory
    trackers/         what TensorBoard, wandb and MLflow write, if `--track` names them
    prometheus.json   where Prometheus finds the metrics of the run, while it goes on
    summary.{json,md,png}
    error.txt         why the run ended early, if it did
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluations = self.path / "evaluations.jsonl"
        self.alarms = self.path / "alarms.jsonl"
        self.live = self.path / "live.json"
        self.paused = self.path / "paused"
        self.moments = self.path / "moments"
        self.final_moments = self.moments / "final"
        self.checkpoints = self.path / "checkpoints"
        self.policy = self.path / "policy"
        self.trackers = self.path / "trackers"
        self.scrape_target = self.path / "prometheus.json"
        self.summary = self.path / "summary.json"
        self.error = self.path / "error.txt"

    @classmethod
    def create(cls, runs_dir: Path, name: str, config: str) -> "RunDirectory":
        """Make a new run directory and point `latest` at it."""
        runs_dir.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
            path = runs_dir / f"{name}-{stamp}{suffix}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            break
        run = cls(path)
        run.checkpoints.mkdir()
        run.moments.mkdir()
        run.config.write_text(config)
        pointer = runs_dir / f".latest-{os.getpid()}"
        pointer.symlink_to(path.name)
        pointer.rename(runs_dir / "latest")
        return run

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one step's line; each line is whole or absent."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of the run's steps in order; of a step that was run again after a resume, the newest."""
        if not self.metrics.exists():
            return []
        rows = [json.loads(line) for line in self.metrics.read_text().splitlines()]
        return [row for _, row in sorted({row["step"]: row for row in rows}.items())]

    def last_metrics(self, most: int) -> list[dict[str, Any]]:
        """Up to `most` of the newest whole rows, oldest first, read from the end of the file.

        Without steps that were run again; fewer where so many rows are longer than `_TAIL_BYTES`.
        """
        rows: list[dict[str, Any]] = []
        for row in last_lines(self.metrics, _TAIL_BYTES):
            if type(row.get("step")) is int:
                while rows and rows[-1]["step"] >= row["step"]:
                    rows.pop()
                rows.append(row)
        return rows[-most:]

    def append_alarm(self, step: int, alarm: Alarm) -> None:
        """Add one alarm's line."""
        with self.alarms.open("a") as file:
            file.write(json.dumps({"step": step, **asdict(alarm)}) + "\n")

    def append_evaluation(self, step: int, split: str, evaluation: Evaluation) -> None:
        """Add one evaluation's line."""
        with self.evaluations.open("a") as file:
            file.write(json.dumps({"step": step, "split": split, **asdict(evaluation)}) + "\n")

    def read_evaluations(self, step: int) -> dict[str, Evaluation]:
        """The evaluations after `step` policy steps, by split."""
        if not self.evaluations.exists():
            return {}
        rows = [json.loads(line) for line in self.evaluations.read_text().splitlines()]
        here = [row for row in rows if row.pop("step") == step]
        return {row.pop("split"): Evaluation(**row) for row in here}

    def checkpoint_steps(self) -> list[int]:
        """Steps that a complete checkpoint was written after, oldest first."""
        return sorted(int(path.name.removeprefix(CHECKPOINT_PREFIX)) for path in self._complete())

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"{CHECKPOINT_PREFIX}{step:06d}"

    def begin_checkpoint(self, step: int) -> Path:
        """An empty directory to write a checkpoint into; not a checkpoint until `finish_checkpoint`."""
        partial = self.checkpoints / f"partial-{step:06d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def finish_checkpoint(self, partial: Path, step: int, keep: int) -> Path:
        """Give a written checkpoint its name, and drop all but the `keep` newest."""
        final = self.checkpoint(step)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in self.checkpoint_steps()[:-keep]:
            shutil.rmtree(self.checkpoint(old))
        return final

    def _complete(self) -> Iterator[Path]:
        return (path for path in self.checkpoints.glob(f"{CHECKPOINT_PREFIX}*") if path.is_dir())


def last_lines(path: Path, most_bytes: int) -> list[dict[str, Any]]:
    """JSON objects of the whole lines in the last `most_bytes` of a file; none where there is no file."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - most_bytes))
        # The first line of the tail may be cut, the last not yet be whole.
        return list(json_objects(file.read().rpartition(b"\n")[0].splitlines()))


def json_objects(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Of JSON lines those that hold an object."""
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row

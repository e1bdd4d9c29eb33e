"""A run's directory: the one place that everything about a run is written to and read from."""

import itertools
import os
import re
import shutil
import uuid
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from deploy.rundir import lines
from deploy.rundir.evaluation import Evaluation
from moments_service import durable
from moments_service.health import Alarm

Ending = Literal["stopped", "failed"]
"""How a run can end before its last step: by hand, or by an error."""
_CHECKPOINT = re.compile(r"step-([0-9]{6,})")
_PARTIAL = ".partial-"
_TAIL_BYTES = 2**18
_EVALUATED = {"split", *(field.name for field in fields(Evaluation))}
_ALWAYS_EVALUATED = {"split", "pass_at_1", "sources", "prompts", "errors"}
"""What lines of older versions have, too."""


class RunDirectory:
    """Paths and small files of one run; `runs/latest` points at the newest.

    config.yaml       the resolved configuration of the newest start; the ledger has that of every one
    run_id            what tells it from every other run, also where directories were copied
    metrics.jsonl     one line a step
    evaluations.jsonl one line an evaluation
    evaluated/        what `bvblend eval` found of its policies: JSON, and a picture each
    alarms.jsonl      one line an alarm, if there was one; paused while a person has to look at it
    live.json         queues and moments as of the last step, replaced as a whole
    moments/          ledger, every version of the clusters, and the moments at the end in final/
    checkpoints/      step-000050/ and so on, complete or absent
    policy/           the final policy, a Hugging Face directory
    tokens/           values of every token of some groups, a file for each step that keeps them
    skipped/          batches whose gradient was not finite, if there were any
    trackers/         what TensorBoard, wandb and MLflow write, if `--track` names them
    prometheus.json   where Prometheus finds the metrics of the run, while it goes on
    summary.{json,md,png}
    owner.json        which process runs it, while one does; owner.lock is what it holds
    error.txt         why the run ended early, if it did; ending.json says how
    ray_logs/         the ends of Ray's and its workers' logs, after a failure of a run with a Ray of its own
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))  # of a loop of links too
        self.config = self.path / "config.yaml"
        self.name_tag = self.path / "run_id"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluations = self.path / "evaluations.jsonl"
        self.evaluated = self.path / "evaluated"
        self.alarms = self.path / "alarms.jsonl"
        self.live = self.path / "live.json"
        self.paused = self.path / "paused"
        self.moments = self.path / "moments"
        self.final_moments = self.moments / "final"
        self.checkpoints = self.path / "checkpoints"
        self.policy = self.path / "policy"
        self.skipped = self.path / "skipped"
        self.tokens = self.path / "tokens"
        self.trackers = self.path / "trackers"
        self.scrape_target = self.path / "prometheus.json"
        self.summary = self.path / "summary.json"
        self.error = self.path / "error.txt"
        self.ending = self.path / "ending.json"
        self.ray_logs = self.path / "ray_logs"

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
        durable.write_text(run.name_tag, uuid.uuid4().hex)
        durable.write_text(run.config, config)
        pointer = runs_dir / f".latest-{os.getpid()}"
        pointer.symlink_to(path.name)
        pointer.rename(runs_dir / "latest")
        return run

    def identity(self) -> str | None:
        """What tells this run from every other; None where an older version began it."""
        return self.name_tag.read_text(encoding="utf-8") if self.name_tag.exists() else None

    def begin(self) -> None:
        """The run begins, or goes on: how it ended before is past."""
        for path in (self.error, self.ending):
            path.unlink(missing_ok=True)

    def end_early(self, how: Ending, why: str) -> None:
        """The run ended before its last step. why: for people, a traceback."""
        durable.write_text(self.error, why)
        durable.write_json(self.ending, {"ending": how})

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one step's line."""
        lines.append(self.metrics, row)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of the run's steps in order, without those of a history that a resume left."""
        return lines.lineage(lines.read(self.metrics))

    def last_metrics(self, most: int) -> list[dict[str, Any]]:
        """The last `most` of them, read from the end of the file; fewer where so many are longer than `_TAIL_BYTES`."""
        return lines.lineage(lines.tail(self.metrics, _TAIL_BYTES))[-most:]

    def append_alarm(self, step: int, alarm: Alarm) -> None:
        """Add one alarm's line."""
        lines.append(self.alarms, {"step": step, **asdict(alarm)})

    def append_evaluation(self, step: int, split: str, evaluation: Evaluation) -> None:
        """Add one evaluation's line."""
        lines.append(self.evaluations, {"step": step, "split": split, **asdict(evaluation)})

    def read_evaluations(self, step: int) -> dict[str, Evaluation]:
        """The evaluations after `step` policy steps, by split."""
        here = [row for row in lines.read(self.evaluations) if row.pop("step", None) == step]
        return {
            str(row.pop("split")): Evaluation(**row) for row in here if _ALWAYS_EVALUATED <= row.keys() <= _EVALUATED
        }

    def checkpoint_steps(self) -> list[int]:
        """Steps that a complete checkpoint was written after, oldest first. Whatever else lies there is none."""
        if not self.checkpoints.is_dir():
            return []
        there = [path for path in self.checkpoints.iterdir() if path.is_dir() and not path.is_symlink()]
        steps = {int(name[1]) for path in there if (name := _CHECKPOINT.fullmatch(path.name))}
        # Of two names of one step, step-0000050 say, only the one that is written here counts.
        return sorted(step for step in steps if self.checkpoint(step) in there)

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def begin_checkpoint(self, step: int) -> Path:
        """An empty directory, of this attempt alone, to write a checkpoint into; it is none until `finish_checkpoint`."""
        for attempt in itertools.count(1):
            partial = self.checkpoints / f"{_PARTIAL}{step:06d}-{attempt}"
            try:
                partial.mkdir(parents=True)
            except FileExistsError:
                continue
            return partial
        raise AssertionError("there is always a next number")

    def finish_checkpoint(self, partial: Path, step: int, keep: int) -> Path:
        """Give a written checkpoint its checksums and its name, on the disk, and drop all but the `keep` newest."""
        final = self.checkpoint(step)
        durable.put_directory(partial, final)
        for old in self.checkpoint_steps()[:-keep]:
            # Under another name first: a kill must not leave half a checkpoint under the name of a whole one.
            dropped = self.checkpoint(old).rename(_free(self.checkpoints, f"{_PARTIAL}{old:06d}-dropped"))
            shutil.rmtree(dropped)
        return final

    def set_aside_after(self, step: int) -> list[Path]:
        """The run goes on from `step`: checkpoints of later ones, and the moments of its end, are of a history that it leaves.

        So are alarms and evaluations, whose files say so. Returns where checkpoints and moments are now.
        """
        lines.leave(self.alarms, step)
        lines.leave(self.evaluations, step + 1)  # that of `step` is of the policy that the run goes on with
        left = {self.checkpoint(later): f"left-{later:06d}" for later in self.checkpoint_steps() if later > step}
        if self.final_moments.exists():
            left[self.final_moments] = "left-final"
        return [here.rename(_free(here.parent, stem)) for here, stem in left.items()]

    def sweep(self) -> None:
        """Before a run goes on: remove what killed attempts left, and put back what a kill left between two names."""
        for partial in self.checkpoints.glob(f"{_PARTIAL}*"):
            shutil.rmtree(partial, ignore_errors=True)
        durable.settle_all(self.checkpoints)
        durable.settle_all(self.moments)


def _free(parent: Path, stem: str) -> Path:
    """A path that nothing stands at."""
    return next(path for n in itertools.count(1) if not (path := parent / f"{stem}-{n}").exists())

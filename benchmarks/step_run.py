"""Our side of `benchmarks/step.py`: a real run in a process tree of its own, watched from outside while it makes its steps."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.step_task import Task

ROOT = Path(__file__).parents[1]
LOOK_S = 0.01
LR = 1e-5
START_S = 240.0
"""For a run to make its first step."""


def settings(folder: Path, task: Task, cores: int, steps: int, engine: dict[str, Any]) -> dict[str, Any]:
    """The whole recipe: the pipeline's defaults but for the task, float32, and the threads of `cores`."""
    length = 64 + task.tokens
    source = {
        "kind": "jsonl",
        "name": "words",
        "path": str(folder / "prompts.jsonl"),
        "verifier": "benchmarks.step_task:last_word_is_odd",
    }
    return {
        "name": "step",
        "policy": str(folder / "policy"),
        "runs_dir": str(folder / "runs"),
        "steps": steps,
        "batch_groups": task.prompts,
        "group_size": task.completions,
        "prompts": {"sources": [source], "max_tokens": 64},
        "sampling": {"max_tokens": task.tokens},
        "rollout": {"engine": engine, "max_model_len": length, "cpus": 1},
        "moments": {"estimator": "hierarchical", "clusters": {"by": "source"}},
        "learner": {"dtype": "float32", "cpus": cores, "optimizer": {"lr": LR}},
        "evaluation": {"train_prompts": 0},
        "checkpoint": {"every": 0},
    }


def measure(recipe: dict[str, Any], folder: Path, cores: Sequence[int], warm_up: int) -> dict[str, Any]:
    """Make a run of the recipe on these cores; what a step behind the first `warm_up` took in the mean, of the clock and of all
    processes of the run together, and where it went."""
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (folder / "ours.log").open("w", encoding="utf-8") as log:
        run = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", "train", str(file)],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        try:
            began = _after(run, folder, warm_up)
            ended = _after(run, folder, recipe["steps"])
        finally:
            run.terminate()
            run.wait()
    rows = [json.loads(line) for line in _rows(folder).read_text(encoding="utf-8").splitlines()][warm_up:]
    steps = recipe["steps"] - warm_up
    return {
        "wall_s": (ended[0] - began[0]) / steps,
        "cpu_s": (ended[1].total() - began[1].total()) / steps,
        "cpu_of": {name: (seconds - began[1][name]) / steps for name, seconds in ended[1].most_common()},
        "length": recipe["sampling"]["max_tokens"],
        "median_s": median(row["seconds"] for row in rows),
        "phases_s": {name: median(row["phases"][name] for row in rows) for name in rows[0]["phases"]},
        "tokens": median(row["tokens_per_s"] * row["seconds"] for row in rows),
    }


def _rows(folder: Path) -> Path:
    return folder / "runs" / "latest" / "metrics.jsonl"


def _after(run: "subprocess.Popen[bytes]", folder: Path, steps: int) -> tuple[float, Counter[str]]:
    """The clock, and CPU seconds so far by process, when the run has made so many steps. Raises RuntimeError where it ends first."""
    deadline = time.monotonic() + START_S
    while True:
        with suppress(FileNotFoundError):
            if _rows(folder).read_bytes().count(b"\n") >= steps:
                return time.perf_counter(), _cpu_seconds(run.pid)
        if run.poll() is not None or time.monotonic() > deadline:
            said = (folder / "ours.log").read_text(encoding="utf-8")[-2000:]
            raise RuntimeError(f"the run ended, or made less than {steps} steps in {START_S:g} s; it said: {said}")
        time.sleep(LOOK_S)


def _cpu_seconds(pid: int) -> Counter[str]:
    driver = psutil.Process(pid)
    seconds: Counter[str] = Counter()
    for process in [driver, *driver.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds["driver" if process is driver else _title(process)] += times.user + times.system
    return seconds


def _title(process: psutil.Process) -> str:
    """What a process is, without what it does just now: Ray writes both into its command line."""
    words = process.cmdline() or [process.name()]
    module = next((after for word, after in pairwise(words) if word == "-m"), None)
    return module or Path(words[0]).name.partition(".")[0]

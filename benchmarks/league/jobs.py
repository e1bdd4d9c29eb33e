"""Jobs: what they are, and many of them on some cores, so that a kill costs only what was running."""

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from moments_service.durable import append_line, strict_json
from moments_service.strict import StrictModel

_FORK = multiprocessing.get_context("forkserver")


class Job(StrictModel):
    """One policy trained once. What is left out is as the task's recipe says."""

    task: str
    """Recipe in deploy/recipes or its path, or `fresh`."""
    estimator: str
    """As `moments_service.estimators.naming` reads it, or a control of benchmarks/league/baselines.py."""
    clusters: str = "embedding:16"
    """See `baselines.clusters_of`."""
    group_size: int = Field(2, ge=1)
    """Completions of each prompt."""
    completions: int = Field(64, ge=1)
    """Of a batch, over all its groups."""
    steps: int | None = Field(None, ge=1)
    """Policy steps."""
    lr: float | None = Field(None, gt=0)
    """Learning rate."""
    order: Literal["shuffled", "signal", "mopps", "greso", "kalman"] = "shuffled"
    """Order of the prompts."""
    filter: Literal["none", "dapo"] = "none"
    """Which groups are learned from: all, or those whose rewards differ."""
    seed: int = 0
    """The one that every choice derives from."""
    frozen_at: tuple[int, ...] = ()
    """Stop after so many steps to measure estimators on the policy as it is then, see benchmarks/league/frozen.py."""
    frozen: tuple[str, ...] = ()
    """These estimators."""


def read_jobs(path: Path) -> list[Job]:
    """The jobs of a YAML file: a list of mappings. In each, a list of values stands for as many jobs, all combinations."""
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    jobs = [Job.model_validate(row) for entry in rows for row in _combinations(entry)]
    return list(dict.fromkeys(jobs))


def _combinations(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, value in entry.items():
        if isinstance(value, list) and name not in ("frozen_at", "frozen"):
            for one in value:
                yield from _combinations(entry | {name: one})
            return
    yield entry


def results(directory: Path) -> list[dict[str, Any]]:
    """Every line that is whole, of all parts."""
    lines = [
        line
        for path in sorted(directory.glob("results*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.endswith("\n")
    ]
    return [json.loads(line) for line in lines]


def run_jobs(
    jobs: Sequence[Job],
    directory: Path,
    workers: int,
    work: Callable[[Job], dict[str, Any]],
    part: tuple[int, int] = (1, 1),
    say: Callable[[str], None] = print,
) -> int:
    """Do what `directory` holds no result of yet, each job in a process of its own. Returns how many failed.

    work: from a job to its result.    part: (i, n) does every n-th job from the i-th on, into a file of its own.
    A job that fails, or whose process dies, is written down with its error, and the next start tries it again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    number, parts = part
    log = directory / ("results.jsonl" if parts == 1 else f"results-{number}-of-{parts}.jsonl")
    done = {Job.model_validate(row["job"]) for row in results(directory) if "result" in row}
    waiting = [job for job in jobs[number - 1 :: parts] if job not in done]
    say(f"{len(waiting)} of {len(jobs[number - 1 :: parts])} jobs are to be done")
    _FORK.set_forkserver_preload(["benchmarks.league.frozen"])
    running: dict[Connection, tuple[Job, Any, float]] = {}
    failed = finished = 0
    while waiting or running:
        while waiting and len(running) < workers:
            job = waiting.pop(0)
            receiver, sender = _FORK.Pipe(duplex=False)
            process = _FORK.Process(target=_do, args=(work, job, sender))
            process.start()
            sender.close()
            running[receiver] = (job, process, time.perf_counter())
        for ready in wait(list(running)):
            assert isinstance(ready, Connection)
            job, process, started = running.pop(ready)
            row = _outcome(ready, process) | {"seconds": round(time.perf_counter() - started, 2)}
            append_line(log, strict_json({"job": job.model_dump(mode="json")} | row).encode())
            failed, finished = failed + ("error" in row), finished + 1
            what = row["error"].splitlines()[-1] if "error" in row else f"{row['seconds']:.0f} s"
            say(f"{finished:4}  {job.task} {job.estimator} {job.clusters} G={job.group_size} seed {job.seed}: {what}")
    return failed


def _do(work: Callable[[Job], dict[str, Any]], job: Job, sender: Connection) -> None:
    row: dict[str, Any]
    try:
        row = {"result": work(job)}
    except Exception:
        row = {"error": traceback.format_exc()}
    sender.send(row)
    sender.close()


def _outcome(receiver: Connection, process: Any) -> dict[str, Any]:
    try:
        row: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        row = {"error": f"the job's process ended with code {process.exitcode}"}
    receiver.close()
    process.join()
    return row

"""The whole step of the pipeline beside TRL's, default and tuned (`trl_side.py`): one core and two, three tasks.

usage: python -m benchmarks.step --out FILE [--rounds 1] [--steps 12] [--cores 1 2] [--tasks "1.1M, 32 tokens"] [--engine vllm|transformers]

A round is a run of ours, then steps of both TRL trainers in turn, on the same cores. The first steps of every side are not counted.
TRL samples with transformers, as it does where vLLM has no GPU. Reported are medians; CPU seconds are of every process of a side, and those of Ray's
daemons are ours.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import step_run
from benchmarks.figures import Figure, figure, write_figures
from benchmarks.step_task import PROMPT_WORDS, SMALL_32, TASKS, Task, last_word_is_odd, make, prompts
from benchmarks.turns import Side

OURS_WARM_UP, TRL_WARM_UP = 3, 1
ENGINES: dict[str, dict[str, Any]] = {
    "vllm": {"kind": "vllm", "max_concurrent": 128, "kv_cache_gib": 0.25},
    "transformers": {"kind": "transformers"},
}
KINDS = ("default", "tuned")
TARGETS = {1: {"default": 3.0, "tuned": 2.5}, 2: {"default": 2.0, "tuned": 2.0}}
BY_NAME = {task.name: task for task in TASKS}
Measured = dict[str, dict[str, Any]]
"""By side: `ours`, `default`, `tuned`."""


def trl_side(folder: Path, task: Task, kind: Any) -> None:
    """In a process of its own: TRL's trainer, a step whenever it is told to."""
    import torch

    from benchmarks.trl_side import Shape, make_trainer

    def reward(completions: list[str], **_: Any) -> list[float | None]:
        return [last_word_is_odd(None, completion) for completion in completions]

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    shape = Shape(task.prompts, task.completions, PROMPT_WORDS, task.tokens)
    make_trainer(str(folder / "policy"), prompts(folder), reward, shape, kind, learning_rate=step_run.LR).train()


def trl_steps(folder: Path, task: Task, cores: Sequence[int], steps: int) -> Measured:
    """Medians over `steps` steps of both trainers, made in turn."""
    whole = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # which the sides inherit
    times: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    try:
        with ExitStack() as stack:
            sides = []
            for kind in KINDS:
                command = [sys.executable, "-m", "benchmarks.step", "--side", kind, str(folder), task.name]
                sides.append(stack.enter_context(Side(kind, command, folder / f"{kind}.log", len(cores))))
            for turn in range(TRL_WARM_UP + steps):
                for side in sides:
                    took = side.step()
                    if turn >= TRL_WARM_UP:
                        times[side.name].append(took)
    finally:
        os.sched_setaffinity(0, whole)
    return {kind: {key: median(row[key] for row in rows) for key in rows[0]} for kind, rows in times.items()}


def figures(task: Task, cores: int, rounds: Sequence[Measured]) -> list[Figure]:
    """Seconds of every side, and how many times ours TRL takes."""
    where = f"{task.name}, {cores} core{'s' * (cores > 1)}"
    taken = {
        (side, key): median(each[side][key] for each in rounds)
        for side in ("ours", *KINDS)
        for key in ("wall_s", "cpu_s")
    }
    names = {"wall_s": "wall time", "cpu_s": "CPU seconds"}
    found = [figure(f"{where}: {side}, {names[key]}", seconds, "s") for (side, key), seconds in taken.items()]
    for kind in KINDS:
        # The goals are for the small policy; the larger one shows whether they hold beyond it.
        target = TARGETS.get(cores, {}).get(kind) if task.hidden == SMALL_32.hidden else None
        for key, name in names.items():
            ratio = taken[kind, key] / taken["ours", key]
            goal = target if key == "wall_s" else None
            found.append(figure(f"{where}: TRL {kind} / ours, {name}", ratio, "1", "higher", goal))
    return found


def measure(task: Task, cores: Sequence[int], arguments: argparse.Namespace) -> Measured:
    """One round: our run, then TRL's steps."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(task, folder)
        engine = ENGINES[arguments.engine]
        recipe = step_run.settings(folder, task, len(cores), OURS_WARM_UP + arguments.steps, engine)
        return {"ours": step_run.measure(recipe, folder, cores, OURS_WARM_UP)} | trl_steps(
            folder, task, cores, arguments.trl_steps
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12, help="of ours in a round")
    parser.add_argument("--trl-steps", type=int, default=4, help="of each of TRL's trainers in a round")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tasks", nargs="+", choices=BY_NAME, default=list(BY_NAME))
    parser.add_argument("--engine", choices=ENGINES, default="vllm")
    arguments = parser.parse_args()
    usable, load = sorted(os.sched_getaffinity(0)), os.getloadavg()[0]
    found: list[Figure] = []
    measured: dict[str, list[Measured]] = {}
    for count in arguments.cores:
        for task in (BY_NAME[name] for name in arguments.tasks):
            rounds = [measure(task, usable[:count], arguments) for _ in range(arguments.rounds)]
            measured[f"{task.name}, {count} cores"] = rounds
            print(json.dumps(rounds), file=sys.stderr, flush=True)
            found += figures(task, count, rounds)
            write_figures(arguments.out, found, engine=arguments.engine, load_before=load, measured=measured)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        trl_side(Path(sys.argv[3]), BY_NAME[sys.argv[4]], sys.argv[2])
    else:
        main()

"""The league's commands; `benchmarks/league/__init__.py` says how they go together."""

import argparse
from collections import defaultdict
from functools import partial
from pathlib import Path

from benchmarks.league.jobs import Job, read_jobs, results, run_jobs
from benchmarks.league.table import tables

CACHE = Path("~/.cache/bvblend/league")


def plan(arguments: argparse.Namespace) -> int:
    """Make every task ready that the jobs are of, with the clusters that they name."""
    from benchmarks.league.tasks import prepare

    jobs = read_jobs(arguments.jobs)
    wanted: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for job in jobs:
        kind, _, rest = job.clusters.removeprefix("shuffled:").partition(":")
        wanted[job.task] |= {(int(rest), job.seed)} if kind == "embedding" else set()
    for task, codebooks in wanted.items():
        print(f"{task}: {prepare(task, arguments.cache.expanduser(), sorted(codebooks))}")
    print(f"{len(jobs)} jobs")
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Do the jobs that have no result yet."""
    from benchmarks.league.frozen import train_and_measure

    work = partial(train_and_measure, cache=arguments.cache.expanduser())
    return run_jobs(read_jobs(arguments.jobs), arguments.out, arguments.workers, work, arguments.part) > 0


def show(arguments: argparse.Namespace) -> int:
    """Print a table for every task, size and setting."""
    newest = {Job.model_validate(row["job"]): row for row in results(arguments.out)}
    print(tables(list(newest.values()), arguments.measure, arguments.against))
    for job, row in newest.items():
        if "error" in row:
            print(f"failed: {job.model_dump_json(exclude_defaults=True)}: {row['error'].splitlines()[-1]}")
    return 0


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not 1 <= int(number) <= int(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; write 1/3, 2/3 or 3/3")
    return int(number), int(parts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.league", description=__doc__)
    commands = parser.add_subparsers(required=True)
    planning, running, showing = (commands.add_parser(name) for name in ("plan", "run", "show"))
    for command in (planning, running):
        command.add_argument("jobs", type=Path, help="YAML list of jobs")
        command.add_argument("--cache", type=Path, default=CACHE, help="where prepared tasks are")
    running.add_argument("--out", type=Path, required=True, help="directory of the results")
    running.add_argument("--workers", type=int, default=1, help="jobs at once, one core each")
    running.add_argument("--part", type=_part, default=(1, 1), help="i/n: every n-th job, from the i-th on")
    showing.add_argument("out", type=Path)
    showing.add_argument("--measure", default="held_out", help="held_out, train, held_out@8, area, …")
    showing.add_argument("--against", default="grpo", help="estimator that the others are compared with")
    for command, work in ((planning, plan), (running, run), (showing, show)):
        command.set_defaults(work=work)
    arguments = parser.parse_args()
    return int(arguments.work(arguments))


if __name__ == "__main__":
    raise SystemExit(main())

"""Whether `bvblend advise`, from the log of one short GRPO run, puts estimators in the order in which they came in the league.

python -m benchmarks.league.advice --cache DIR --out benchmarks/results/advice.json
"""

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from benchmarks.figures import Figure, figure, write_figures
from benchmarks.league.evidence import RUNS
from benchmarks.league.found import TASKS, Found
from benchmarks.league.jobs import Job
from benchmarks.league.lab import Drawn, Lab
from benchmarks.league.table import half_width
from benchmarks.league.tasks import load_task, task_file
from moments_service.messages.table import padded
from moments_service.offline.advice import advise
from moments_service.offline.logged_rewards import LoggedRewards, numbered

LOG_STEPS, LOG_SIZE = 30, 4
"""Of the log that is read: what a user would have tried first."""
SIZES = (1, 2, 4, 8)
IN_THE_LEAGUE = {
    "hierarchical": "hierarchical",
    "grpo": "grpo",
    "rloo": "rloo",
    "batch mean": "batch_mean",
    "bv_blend": "bv_blend:safe",
    "bv_blend:eb": "bv_blend:eb",
    "cluster mean": "cluster_mean",
}
"""Names of the advice's table, and of the league."""


class LoggedLab(Lab):
    """Keeps what was drawn."""

    def __init__(self, *arguments: Any) -> None:
        self.drawn: list[Drawn] = []
        super().__init__(*arguments)

    def draw(self) -> Drawn:
        self.drawn.append(super().draw())
        return self.drawn[-1]


def logged(task: str, clusters: str, cache: Path) -> tuple[LoggedRewards, LoggedLab]:
    """A GRPO run's log."""
    job = Job(task=task, estimator="grpo", clusters=clusters, group_size=LOG_SIZE, steps=LOG_STEPS)
    lab = LoggedLab(load_task(task_file(task, cache)), job)
    for _ in range(LOG_STEPS):
        lab.step()
    rows = np.concatenate([drawn.rows for drawn in lab.drawn])
    rewards = [group for drawn in lab.drawn for group in drawn.batch.rewards]
    steps = np.repeat(np.arange(LOG_STEPS), [len(drawn.rows) for drawn in lab.drawn])
    clusters_of_rows = numbered([int(number) for number in lab.clusters[rows]])
    return LoggedRewards(padded(rewards, LOG_SIZE, np.nan), steps, numbered(rows.tolist()), clusters_of_rows, True), lab


@dataclass(frozen=True, slots=True)
class Comparison:
    """One task at one group size: what was foretold of each estimator, and the area under its curve in the league."""

    task: str
    group_size: int
    advised: str
    foretold: dict[str, float]
    areas: dict[str, dict[int, float]]
    """By estimator and seed."""

    @property
    def regret(self) -> float:
        """Area that the advised estimator lacks to the best."""
        means = {name: fmean(by_seed.values()) for name, by_seed in self.areas.items()}
        return max(means.values()) - means[self.advised]

    def pairs(self) -> list[tuple[float, float]]:
        """(difference foretold, difference of areas) of the pairs that the league tells apart."""
        found = []
        for one, other in itertools.combinations(sorted(self.areas), 2):
            shared = sorted(self.areas[one].keys() & self.areas[other].keys())
            apart = [self.areas[one][seed] - self.areas[other][seed] for seed in shared]
            if len(apart) > 2 and abs(fmean(apart)) > half_width(apart):
                found.append((self.foretold[one] - self.foretold[other], fmean(apart)))
        return found


def compare(task: str, found: Found, cache: Path) -> list[Comparison]:
    """At every group size of which the league has two estimators and more."""
    log, lab = logged(task, TASKS.get(task, "embedding:16"), cache)
    advice = advise(log, lab.task.config.moments, sizes=SIZES)
    assert advice.table is not None, f"{task}: no reward of the log differs from any other"
    comparisons = []
    for size in SIZES:
        runs = {
            name: found.of(task, size, IN_THE_LEAGUE[name]) for name in advice.table.estimators if name in IN_THE_LEAGUE
        }
        areas = {
            name: {seed: run["area"] for seed, run in by_seed.items()} for name, by_seed in runs.items() if by_seed
        }
        if len(areas) > 1:
            foretold = {name: advice.table.of(name, size).value for name in areas}
            comparisons.append(Comparison(task, size, advice.table.best(size, sorted(areas)), foretold, areas))
    return comparisons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cache", type=Path, required=True, help="where `python -m benchmarks.league plan` put the tasks"
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = Found(json.loads(RUNS.read_text(encoding="utf-8"))["runs"])
    comparisons = [each for task in (*TASKS, "lengths") for each in compare(task, found, arguments.cache)]
    figures: list[Figure] = []
    for each in comparisons:
        right = [foretold * area > 0 for foretold, area in each.pairs()]
        name = f"{each.task}, G = {each.group_size}"
        if right:
            figures.append(
                figure(
                    f"{name}: pairs told apart by the league that are in the foretold order",
                    fmean(right),
                    "1",
                    "higher",
                )
            )
        figures.append(figure(f"{name}: area that `{each.advised}` lacks to the best", each.regret, "1"))
    every = [foretold * area > 0 for each in comparisons for foretold, area in each.pairs()]
    figures.append(figure("all: pairs in the foretold order", fmean(every), "1", "higher"))
    rows = [
        {"task": each.task, "group_size": each.group_size, "advised": each.advised, "foretold": each.foretold,
         "areas": {name: fmean(by_seed.values()) for name, by_seed in each.areas.items()}}
        for each in comparisons
    ]  # fmt: skip
    write_figures(arguments.out, figures, comparisons=rows)


if __name__ == "__main__":
    main()

"""The league's runs, by what they were of."""

from collections.abc import Iterable
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.league.table import half_width

OURS = "hierarchical"
RIVALS = ("grpo", "rloo", "batch_mean")
TASKS = {"mixed": "embedding:32", "fresh": "embedding:16", "cold_start": "embedding:16"}
"""Tasks on which the default must nowhere lose, with the clusters of their recipes."""
SIZES = (1, 2, 4, 8)

Run = dict[str, Any]


class Found:
    """Runs by what they were of. Levels are pass@1 on held-out prompts after the last step, worked out exactly."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = list(runs)

    def of(
        self, task: str, size: int, estimator: str, clusters: str = "", order: str = "shuffled", kept: str = "none"
    ) -> dict[int, Run]:
        """By seed; clusters as the task's recipe has them if they are not named."""
        wanted = (task, size, estimator, clusters or TASKS.get(task, "embedding:16"), order, kept)
        names = ("task", "group_size", "estimator", "clusters", "order", "filter")
        return {run["seed"]: run for run in self.runs if tuple(run[name] for name in names) == wanted}

    def cell(self, *wanted: Any, **more: Any) -> str:
        runs = self.of(*wanted, **more)
        return f"{fmean(levels(runs)):.3f}" if runs else "–"

    def less(self, one: dict[int, Run], other: dict[int, Run], comparisons: int) -> tuple[float, float]:
        """Mean difference of equal seeds, and the half-width of its interval among so many comparisons."""
        shared = [one[seed]["held_out"] - other[seed]["held_out"] for seed in sorted(one.keys() & other.keys())]
        return fmean(shared), half_width(shared, comparisons)


def levels(runs: dict[int, Run]) -> list[float]:
    return [run["held_out"] for run in runs.values()]


def mean_level(runs: dict[int, Run]) -> float:
    return fmean(levels(runs))


def samples_to(runs: dict[int, Run], level: float) -> int | None:
    """Completions until the mean curve stands at a level; None if it never does."""
    return next((samples for samples, value in mean_curve(runs) if value >= level), None)


def mean_curve(runs: dict[int, Run]) -> list[tuple[int, float]]:
    """(completions, mean over seeds of pass@1 on a part of the held-out prompts)."""
    curves = [run["curve"] for run in runs.values()]
    return [(points[0][0], fmean(value for _, value in points)) for points in zip(*curves, strict=True)]


def level_after(curve: list[tuple[int, float]], completions: int) -> float:
    """Of one run, between the two points around so many completions."""
    samples, values = zip(*curve, strict=True)
    return float(np.interp(completions, samples, values))


def best_rival(found: Found, task: str, size: int) -> tuple[str, tuple[float, float]]:
    """The rival that ends highest, and what the default is above it, among all cells of the table."""
    rivals = {name: found.of(task, size, name) for name in RIVALS if found.of(task, size, name)}
    best = max(rivals, key=lambda name: mean_level(rivals[name]))
    return best, found.less(found.of(task, size, OURS), rivals[best], len(TASKS) * len(SIZES))

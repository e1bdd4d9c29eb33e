"""The table of a league: every estimator's level with the paired difference from one of them, over seeds."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

Row = dict[str, Any]


def level(row: Row, measure: str) -> float:
    """What a result came to: `held_out` or `train` (pass@1 at the end; `held_out@8` is pass@8), or a number of the result."""
    side, _, k = measure.partition("@")
    if side in ("held_out", "train"):
        return float(row["result"]["end"][side]["pass_at"][k or "1"])
    return float(row["result"][measure])


def tables(rows: Sequence[Row], measure: str, against: str) -> str:
    """Markdown, one table for everything that jobs have in common but estimator, clusters and seed."""
    groups: dict[str, dict[tuple[str, str], dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if "result" in row:
            job = row["job"]
            common = {
                name: job[name] for name in job if name not in ("estimator", "clusters", "seed", "frozen_at", "frozen")
            }
            name = json.dumps({key: value for key, value in common.items() if value is not None})
            groups[name][job["estimator"], job["clusters"]][job["seed"]] = row
    return "\n\n".join(_table(name, contestants, measure, against) for name, contestants in sorted(groups.items()))


def _table(name: str, contestants: Mapping[tuple[str, str], Mapping[int, Row]], measure: str, against: str) -> str:
    levels = {who: {seed: level(row, measure) for seed, row in by_seed.items()} for who, by_seed in contestants.items()}
    reference = next((values for who, values in levels.items() if who[0] == against), {})
    comparisons = max(1, len(levels) - 1)
    lines = [
        f"{name}",
        "",
        f"| estimator | clusters | n | {measure} | less {against} | 95 % | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for who, values in sorted(levels.items(), key=lambda item: -fmean(item[1].values())):
        seconds = fmean(row["result"]["seconds"] for row in contestants[who].values())
        shared = [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
        difference = "" if values is reference or not shared else f"{fmean(shared):+.3f}"
        width = "" if not difference or len(shared) < 2 else f"± {half_width(shared, comparisons):.3f}"
        lines.append(
            f"| {who[0]} | {who[1]} | {len(values)} | {fmean(values.values()):.3f} | {difference} | {width} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def half_width(values: Sequence[float], comparisons: int = 1) -> float:
    """Of the 95 % interval of the mean of n values by Student's t, by Bonferroni's rule for so many of them at once."""
    quantile = student_quantile(1.0 - 0.025 / comparisons, len(values) - 1)
    return quantile * stdev(values) / len(values) ** 0.5


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile above the median of Student's t, from its density: t = sqrt(freedom) * tan(angle)."""
    # The density of the angle is cos^(freedom - 1): no tail is cut off.
    angles = np.linspace(0.0, np.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = np.interp(probability - 0.5, 0.5 * mass / mass[-1], angles)
    return float(np.sqrt(freedom) * np.tan(angle))

"""The league beside the pipeline on the cold start: the same recipe and seeds, and what both came to.

usage: python -m benchmarks.league.agreement DIR --out benchmarks/results/league.json

DIR: results of the league, for estimators and seeds that benchmarks/results/evidence.json has from the pipeline (vLLM, Ray, FSDP).
Sampling differs, so curves agree within the spread of seeds; that one update is the same is a test (tests/unit/test_league.py).
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.figures import Figure, figure, write_figures
from benchmarks.league.jobs import results

RESULTS = Path(__file__).parents[1] / "results"
WHOLE, END, HELD_OUT = "train reward, whole run", "train pass@1, end", "held-out pass@1, end"

Levels = dict[str, list[float]]
"""By what was measured, a value for each seed."""


def of_league(rows: list[dict[str, Any]]) -> dict[tuple[str, int], Levels]:
    """By estimator and group size."""
    found: dict[tuple[str, int], Levels] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        job, result = row["job"], row.get("result")
        if result and job["task"] == "cold_start" and job["clusters"] == "embedding:16" and job["lr"] is None:
            levels = found[job["estimator"], job["group_size"]]
            levels[WHOLE].append(fmean(result["steps"]["reward"]))
            levels[END].append(result["end"]["train"]["pass_at"]["1"])
            levels[HELD_OUT].append(result["end"]["held_out"]["pass_at"]["1"])
    return found


def of_pipeline() -> dict[tuple[str, int], Levels]:
    """By estimator and group size, from the evidence."""
    found: dict[tuple[str, int], Levels] = defaultdict(lambda: defaultdict(list))
    for run in json.loads((RESULTS / "evidence.json").read_text(encoding="utf-8"))["runs"]:
        levels = found[run["estimator"], run["group_size"]]
        levels[WHOLE].append(run["whole_run"])
        levels[END].append(run["train"]["end"])
        levels[HELD_OUT].append(run["held_out"]["end"])
    return found


def compared(league: dict[tuple[str, int], Levels], pipeline: dict[tuple[str, int], Levels]) -> list[Figure]:
    """The league's mean less the pipeline's, and that in standard errors of a difference of two means over seeds."""
    figures = []
    for who in sorted(league.keys() & pipeline.keys()):
        for name, ours in league[who].items():
            theirs = pipeline[who][name]
            difference = fmean(ours) - fmean(theirs)
            spread = (stdev(ours) ** 2 / len(ours) + stdev(theirs) ** 2 / len(theirs)) ** 0.5
            label = f"{who[0]}, group size {who[1]}, {name}"
            figures += [
                figure(f"{label}: league less pipeline", difference, "1"),
                figure(f"{label}: in standard errors", difference / spread, "1"),
            ]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [row for row in results(arguments.directory) if "result" in row]
    demo = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))["figures"]
    whole = next(each["value"] for each in demo if each["name"] == "whole run")
    step = next(each["value"] for each in demo if each["name"] == "step")
    # The demo's recipe: two completions a group. The quickest job is the one that the machine did least else beside.
    safe = [
        row["result"] for row in rows if row["job"]["estimator"] == "bv_blend:safe" and row["job"]["group_size"] == 2
    ]
    quickest = min(safe, key=lambda result: float(result["seconds"]))
    figures = [
        figure("the demo's recipe, whole job in the league", quickest["seconds"], "s"),
        figure("pipeline / league, whole run", whole / quickest["seconds"], "1", "higher", 10.0),
        figure(
            "pipeline / league, step",
            step * len(quickest["steps"]["reward"]) / quickest["training_seconds"],
            "1",
            "higher",
        ),
        *compared(of_league(rows), of_pipeline()),
    ]
    write_figures(arguments.out, figures, runs=len(rows))


if __name__ == "__main__":
    main()

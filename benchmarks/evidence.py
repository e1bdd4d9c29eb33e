"""Estimators on the cold start at several group sizes: what docs/evidence.md quotes.

usage: python -m benchmarks.evidence RUNS_DIR... --out benchmarks/results/evidence.json

Reads the runs that `bvblend compare` left (docs/evidence.md has the commands) and writes the JSON with every curve, one
picture, and the tables of docs/evidence.md between its markers.
"""

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from benchmarks.figures import Figure, figure
from deploy.report.summary import smooth
from deploy.rundir.layout import RunDirectory

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "evidence.md"
PICTURE = ROOT / "docs" / "images" / "evidence.png"
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""0.975 quantiles of Student's t for so many seeds."""

OURS = "bv_blend:safe"

Run = dict[str, Any]


def read_run(run: RunDirectory) -> Run:
    """What one finished run came to."""
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    chosen = config["moments"]["estimator"]
    estimator = chosen["kind"]
    if estimator == "bv_blend":
        estimator += f":{chosen['variant']}"
    curve = [row["reward/pass_at_1"] for row in run.read_metrics()]
    return {
        "estimator": estimator,
        "group_size": config["group_size"],
        "completions": config["batch_groups"] * config["group_size"],
        "seed": config["seed"],
        "train": summary["train"],
        "held_out": summary["held_out"],
        "whole_run": round(mean(curve), 4),
        "signal": summary["signal_ratio"]["own"],
        "curve": [round(value, 4) for value in curve],
        "machine": summary["machine"],
        "versions": summary["versions"],
    }


def read_runs(directories: Iterable[Path]) -> list[Run]:
    """Every finished run below the directories, by group size, estimator and seed."""
    summaries = {path for directory in directories for path in directory.glob("**/summary.json")}
    runs = [read_run(RunDirectory(path.parent)) for path in summaries if path.parent.name != "latest"]
    return sorted(runs, key=lambda run: (run["group_size"], run["estimator"], run["seed"]))


def by_estimator(runs: list[Run], group_size: int) -> dict[str, list[Run]]:
    """The runs of one group size, best estimator first."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run["group_size"] == group_size:
            found.setdefault(run["estimator"], []).append(run)
    return dict(sorted(found.items(), key=lambda item: -mean(run["train"]["end"] for run in item[1])))


def half_width(values: list[float]) -> float:
    """Of the 95 % interval of their mean; 0 for a single value."""
    return STUDENT_T[len(values)] * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def interval(values: list[float]) -> str:
    return "–" if not values else f"{mean(values):.3f}" + (f" ± {half_width(values):.3f}" if len(values) > 1 else "")


def completions_to_reach(runs: list[Run], level: float) -> str:
    """Completions until the seeds' mean, smoothed curve stands at `level` for the first time."""
    curve = mean_curve(runs)
    reached = next((step for step, value in enumerate(curve, 1) if value >= level), None)
    return "not reached" if reached is None else f"{reached * runs[0]['completions']:,}"


def mean_curve(runs: list[Run]) -> list[float]:
    return smooth([mean(column) for column in zip(*(run["curve"] for run in runs), strict=True)])


def table(found: dict[str, list[Run]]) -> list[str]:
    """Markdown lines of one group size."""
    lines = [
        "| estimator | n | train, end | `safe` is ahead by | train, whole run | held out, end | groups with an advantage "
        "| completions to GRPO's end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    safe = {run["seed"]: run["train"]["end"] for run in found.get(OURS, ())}
    grpo_end = mean_curve(found["grpo"])[-1] if "grpo" in found else None
    for name, runs in found.items():
        ahead = [safe[run["seed"]] - run["train"]["end"] for run in runs if run["seed"] in safe and name != OURS]
        columns = [[run["train"]["end"] for run in runs], ahead, [run["whole_run"] for run in runs]]
        columns.append([run["held_out"]["end"] for run in runs])
        cells = [f"`{name}`", str(len(runs)), *map(interval, columns), f"{mean(run['signal'] for run in runs):.0%}"]
        cells.append("–" if grpo_end is None else completions_to_reach(runs, grpo_end))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write_document(runs: list[Run], group_sizes: list[int]) -> None:
    """Put the tables between the markers of docs/evidence.md."""
    lines: list[str] = []
    for group_size in group_sizes:
        lines += ["", f"#### Group size {group_size}", "", *table(by_estimator(runs, group_size))]
    text = DOCUMENT.read_text(encoding="utf-8")
    between = re.compile(r"(<!-- tables -->\n).*?(\n<!-- end of tables -->)", re.DOTALL)
    DOCUMENT.write_text(
        between.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text), encoding="utf-8"
    )


def draw(runs: list[Run], group_sizes: list[int]) -> None:
    """Train pass@1 at the end with its interval, a panel for each group size."""
    import matplotlib.figure

    picture = matplotlib.figure.Figure(figsize=(3.6 * len(group_sizes) + 1, 3.6), layout="constrained")
    panels = picture.subplots(1, len(group_sizes), sharex=True, squeeze=False)[0]
    for axes, group_size in zip(panels, group_sizes, strict=True):
        found = by_estimator(runs, group_size)
        for row, (name, each) in enumerate(found.items()):
            ends = [run["train"]["end"] for run in each]
            color = "#0b7285" if name.startswith("bv_blend") else "#495057"
            axes.errorbar(mean(ends), row, xerr=half_width(ends), fmt="o", color=color, capsize=3)
            axes.plot(ends, [row] * len(ends), "|", color=color, markersize=9, alpha=0.6)
        axes.set_yticks(range(len(found)), list(found))
        axes.invert_yaxis()
        axes.set(title=f"group size {group_size}", xlabel="train pass@1 at the end")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.2)
    picture.savefig(PICTURE, dpi=130)


def figures(runs: list[Run], group_sizes: list[int]) -> list[Figure]:
    return [
        figure(
            f"{name}, group size {group_size}, train pass@1 at the end, n={len(each)}",
            mean(run["train"]["end"] for run in each),
            "1",
            "higher",
        )
        for group_size in group_sizes
        for name, each in by_estimator(runs, group_size).items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    runs = read_runs(arguments.runs)
    group_sizes = sorted({run["group_size"] for run in runs})
    about = {key: runs[-1][key] for key in ("machine", "versions")}
    for run in runs:
        del run["machine"], run["versions"]
    result = about | {"figures": figures(runs, group_sizes), "runs": runs}
    arguments.out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    draw(runs, group_sizes)
    write_document(runs, group_sizes)
    for row in result["figures"]:
        print(f"{row['name']:<70} {row['value']:.3f}")


if __name__ == "__main__":
    main()

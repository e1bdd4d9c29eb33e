"""What the league found, as docs/evidence.md and the README tell it: tables, sentences and a picture, all from one JSON.

    python -m benchmarks.league.evidence gather DIR... --out benchmarks/results/league_runs.json
    python -m benchmarks.league.evidence write

`gather` reads what `benchmarks.league run` left; DIR/machine.json says where it ran. `write` fills docs/evidence.md and the README between their
markers and draws docs/images/league.png. A test holds both to the JSON.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.figures import Figure, figure
from benchmarks.league.found import OURS, SIZES, TASKS, Found, Run, levels, mean_curve, samples_to
from benchmarks.league.jobs import results
from benchmarks.league.story import document, headline
from benchmarks.league.table import half_width

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "benchmarks" / "results" / "league_runs.json"
PIPELINE = ROOT / "benchmarks" / "results" / "compare_mixed.json"
"""What `bvblend compare deploy/recipes/mixed.yaml --estimators hierarchical,grpo --seeds 3 --set steps=120` found."""
ADVICE = ROOT / "benchmarks" / "results" / "advice.json"
"""What benchmarks/league/advice.py found."""
DOCUMENT = ROOT / "docs" / "evidence.md"
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "league.png"
BEGIN, END = "<!-- league -->", "<!-- end of league -->"
MARKERS = re.compile(f"{BEGIN}\n.*?{END}", re.DOTALL)


def compact(row: Run, machine: int) -> Run:
    """What a line of the league's results came to."""
    job, result = row["job"], row["result"]
    kept = ("task", "estimator", "clusters", "group_size", "completions", "steps", "order", "filter", "seed")
    return {
        **{name: job[name] for name in kept if name in job},
        "held_out": result["end"]["held_out"]["pass_at"]["1"],
        "held_out_pass_at_8": result["end"]["held_out"]["pass_at"]["8"],
        "train": result["end"]["train"]["pass_at"]["1"],
        "sources": result["end"]["held_out"]["sources"],
        "curve": result["curve"],
        "area": round(result["area"], 5),
        "seconds": result["seconds"],
        "machine": machine,
        **({"frozen": result["frozen"]} if "frozen" in result else {}),
    }


def gather(directories: Sequence[Path]) -> dict[str, Any]:
    """All runs of these directories, each once, with the machines that they ran on."""
    machines, runs = [], {}
    for directory in directories:
        machines.append(json.loads((directory / "machine.json").read_text(encoding="utf-8")))
        for row in results(directory):
            if "result" in row:
                runs[json.dumps(row["job"], sort_keys=True)] = compact(row, len(machines) - 1)
    ordered = sorted(runs.values(), key=lambda run: json.dumps({k: v for k, v in run.items() if k != "curve"}))
    return {"machines": machines, "figures": figures(ordered), "runs": ordered}


def figures(runs: Sequence[Run]) -> list[Figure]:
    """The headline."""
    found = Found(runs)
    grpo, ours = found.of("mixed", 2, "grpo"), found.of("mixed", 2, OURS)
    reached = samples_to(ours, mean_curve(grpo)[-1][1])
    whole = mean_curve(grpo)[-1][0]
    return [
        figure("mixed, G = 2: held-out pass@1 less GRPO's", found.less(ours, grpo, 1)[0], "1", "higher", 0.0),
        figure("mixed, G = 2: share of the samples to GRPO's end", (reached or whole) / whole, "1", "lower", 0.6),
    ]


def draw(found: Found) -> None:
    """Held-out curves of `mixed` at G = 2, and the ends of all tasks by group size."""
    import matplotlib.figure

    picture = matplotlib.figure.Figure(figsize=(11, 3.8), layout="constrained")
    left, *rest = picture.subplots(1, 1 + len(TASKS), width_ratios=[1.6, 1, 1, 1])
    shown = {
        OURS: "#0b7285",
        "grpo": "#495057",
        "batch_mean": "#e8590c",
        "oracle": "#adb5bd",
        "bv_blend:safe": "#9c36b5",
    }
    for name, color in shown.items():
        points = mean_curve(found.of("mixed", 2, name))
        left.plot(
            [x / 1000 for x, _ in points],
            [y for _, y in points],
            color=color,
            label=name.replace("_", " "),
            lw=2 if name == OURS else 1.3,
        )
    left.set(title="mixed difficulty, groups of 2", xlabel="thousand completions", ylabel="pass@1, held out")
    left.legend(frameon=False, fontsize=8)
    for axes, task in zip(rest, TASKS, strict=True):
        for beside, (name, color) in enumerate(shown.items()):
            ends = {place: levels(runs) for place, size in enumerate(SIZES) if (runs := found.of(task, size, name))}
            axes.errorbar(
                [place + 0.08 * (beside - 2) for place in ends],
                [fmean(each) for each in ends.values()],
                yerr=[half_width(each) for each in ends.values()],
                color=color, marker="o", ms=3, capsize=2, lw=1,
            )  # fmt: skip
        axes.set_xticks(range(len(SIZES)), map(str, SIZES))
        axes.set(title=task, xlabel="group size")
    for axes in (left, *rest):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    picture.savefig(PICTURE, dpi=130)


def write() -> None:
    """Fill the documents and draw the picture from the JSON."""
    found = Found(json.loads(RUNS.read_text(encoding="utf-8"))["runs"])
    for path, text in told(found).items():
        before, after = MARKERS.split(path.read_text(encoding="utf-8"))
        path.write_text(f"{before}{BEGIN}\n{text.strip()}\n{END}{after}", encoding="utf-8")
    draw(found)


def told(found: Found) -> dict[Path, str]:
    """What stands between the markers of each document."""
    pipeline = json.loads(PIPELINE.read_text(encoding="utf-8"))
    advice = json.loads(ADVICE.read_text(encoding="utf-8"))
    return {DOCUMENT: document(found, pipeline, advice), README: headline(found, pipeline)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    gathering = commands.add_parser("gather")
    gathering.add_argument("directories", type=Path, nargs="+")
    gathering.add_argument("--out", type=Path, default=RUNS)
    commands.add_parser("write")
    arguments = parser.parse_args()
    if arguments.command == "write":
        write()
        return
    found = gather(arguments.directories)
    arguments.out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    for row in found["figures"]:
        print(f"{row['name']:<60} {row['value']:.3f}")


if __name__ == "__main__":
    main()

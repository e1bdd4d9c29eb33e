"""The demo from start to end: how long it takes, where a step's time goes, what is learned.

usage: python -m benchmarks.demo --out benchmarks/results/demo.json [--recipe deploy/recipes/cold_start.yaml]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, figure, write_figures

ROOT = Path(__file__).parents[1]


def measure(recipe: Path) -> tuple[float, dict[str, Any]]:
    """Wall seconds of one run of the recipe, start-up and evaluations included, and its summary."""
    with tempfile.TemporaryDirectory() as runs:
        started = time.perf_counter()
        command = [sys.executable, "-m", "deploy.cli", "train", str(recipe), "--set", f"runs_dir={runs}"]
        subprocess.run(command, cwd=ROOT, check=True)
        seconds = time.perf_counter() - started
        return seconds, json.loads((Path(runs) / "latest" / "summary.json").read_text(encoding="utf-8"))


def figures(seconds: float, summary: dict[str, Any]) -> list[Figure]:
    """What the demo promises, with its targets."""
    step = summary["seconds"] / summary["steps"]
    share = summary["phases"]["moments"] / step
    return [
        figure("whole run", seconds, "s", target=480.0),
        figure("step", step, "s"),
        *(figure(f"step, {phase}", value, "s") for phase, value in summary["phases"].items()),
        figure("moments, share of a step", share, "1", target=0.02),
        figure("train pass@1 at the start", summary["train"]["start"], "1", "higher"),
        figure("train pass@1 at the end", summary["train"]["end"], "1", "higher"),
        figure("held-out pass@1 at the start", summary["held_out"]["start"], "1", "higher"),
        figure("held-out pass@1 at the end", summary["held_out"]["end"], "1", "higher"),
        figure("effective signal", summary["effective_signal"]["own"], "1", "higher"),
        figure("effective signal under GRPO", summary["effective_signal"]["grpo"], "1", "higher"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=ROOT / "deploy" / "recipes" / "cold_start.yaml")
    arguments = parser.parse_args()
    write_figures(arguments.out, figures(*measure(arguments.recipe)))


if __name__ == "__main__":
    main()

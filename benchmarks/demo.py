"""The demo from start to end: how long it takes, where a step's time goes, what it teaches.

usage: python benchmarks/demo.py --out benchmarks/results/demo.json [--recipe deploy/recipes/cold_start.yaml]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def measure(recipe: Path) -> tuple[float, dict[str, Any]]:
    """Wall seconds of one run of the recipe, start-up and evaluations included, and its summary."""
    with tempfile.TemporaryDirectory() as runs:
        started = time.perf_counter()
        command = [sys.executable, "-m", "deploy.cli", "train", str(recipe), "--set", f"runs_dir={runs}"]
        subprocess.run(command, cwd=ROOT, check=True)
        seconds = time.perf_counter() - started
        return seconds, json.loads((Path(runs) / "latest" / "summary.json").read_text())


def figures(seconds: float, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """What the demo promises, with its targets."""
    step = summary["seconds"] / summary["steps"]
    share = summary["phases"]["moments"] / step
    rows: list[tuple[str, float, str, str, float | None]] = [
        ("whole run", seconds, "s", "lower", 480.0),
        ("step", step, "s", "lower", None),
        *((f"step, {phase}", value, "s", "lower", None) for phase, value in summary["phases"].items()),
        ("moments, share of a step", share, "1", "lower", 0.02),
        ("train pass@1 at the start", summary["train"]["start"], "1", "higher", None),
        ("train pass@1 at the end", summary["train"]["end"], "1", "higher", None),
        ("held-out pass@1 at the start", summary["held_out"]["start"], "1", "higher", None),
        ("held-out pass@1 at the end", summary["held_out"]["end"], "1", "higher", None),
        ("groups that teach", summary["signal_ratio"]["own"], "1", "higher", None),
        ("groups that teach under GRPO", summary["signal_ratio"]["grpo"], "1", "higher", None),
    ]
    return [
        {"name": name, "value": value, "unit": unit, "better": better, "target": target}
        for name, value, unit, better, target in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=ROOT / "deploy" / "recipes" / "cold_start.yaml")
    arguments = parser.parse_args()
    seconds, summary = measure(arguments.recipe)
    result = {"machine": summary["machine"], "versions": summary["versions"], "figures": figures(seconds, summary)}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    for figure in result["figures"]:
        print(f"{figure['name']:<32} {figure['value']:10.4f} {figure['unit']}")


if __name__ == "__main__":
    main()

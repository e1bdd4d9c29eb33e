"""A step of one checkout beside a step of another: the same recipe in turns, so that what the machine does meanwhile falls on both.

usage: python -m benchmarks.paired_steps BEFORE AFTER --out FILE [--rounds 3] [--steps 70]

Each run's step is the median of the second half of its steps. Both checkouts use the environment that this is started with.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean, median

from benchmarks.figures import figure, write_figures


def step_seconds(checkout: Path, steps: int) -> float:
    """Median seconds of a step of `cold_start` in its second half."""
    with tempfile.TemporaryDirectory() as runs:
        wanted = {"steps": steps, "evaluation.train_prompts": 8, "checkpoint.every": 0, "runs_dir": runs}
        command = [sys.executable, "-m", "deploy.cli", "train", "deploy/recipes/cold_start.yaml"]
        for key, value in wanted.items():
            command += ["--set", f"{key}={value}"]
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL)
        rows = (Path(runs) / "latest" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return median(json.loads(row)["seconds"] for row in rows[steps // 2 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=70)
    arguments = parser.parse_args()
    sides = [arguments.before.resolve(), arguments.after.resolve()]
    runs = [[step_seconds(side, arguments.steps) for side in sides] for _ in range(arguments.rounds)]
    before, after = ([row[side] for row in runs] for side in (0, 1))
    figures = [
        figure("step before", fmean(before), "s"),
        figure("step after", fmean(after), "s"),
        figure("step after / before", fmean(after) / fmean(before), "1", target=1.0),
    ]
    write_figures(arguments.out, figures, before=before, after=after, steps=arguments.steps)


if __name__ == "__main__":
    main()

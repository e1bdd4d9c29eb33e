"""The pictures of docs/method.md, from the ledger and the metrics of one real run.

usage: python -m benchmarks.method_pictures RUN --out docs/images
"""

import argparse
import json
from contextlib import closing
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from deploy.rundir.layout import RunDirectory
from moments_service.ledger import LedgerReader

matplotlib.use("Agg")
OWN, OTHER, SOFT = "#0b7285", "#b4530a", "#6b757d"
SMOOTHED_STEPS = 10


def signal_picture(directory: RunDirectory) -> Figure:
    """Share of groups with any advantage, and trust in history, step by step."""
    rows = directory.read_metrics()
    steps = np.array([row["step"] + 1 for row in rows])
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label, color in (("own", "BV-Blend", OWN), ("grpo", "GRPO, same groups", OTHER)):
        values = np.array([row[f"signal/{name}"] for row in rows])
        left.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        left.plot(steps, smoothed(values), color=color, label=label)
    left.set(title="groups with any advantage", xlabel="step", ylim=(0, 1.05))
    left.legend(frameon=False, loc="center right")
    weight = np.array([row["advantage/history_weight"] for row in rows])
    right.plot(steps, weight, color=OWN, alpha=0.25, linewidth=0.8)
    right.plot(steps, smoothed(weight), color=OWN)
    right.set(title="trust in history, mean w", xlabel="step", ylim=(0, 1.05))
    return finished(figure)


def uniform_groups_picture(directory: RunDirectory) -> Figure:
    """Advantages of all-wrong and all-right groups, by what their cluster's history said before the step."""
    with closing(LedgerReader(directory.moments)) as ledger:
        (incarnation, *_) = ledger.incarnations()
        rows = ledger.folded((incarnation, 0, 2**31), "rewards", "advantages, baseline, weight")
    history, advantage, right = [], [], []
    for _, _, _, rewards_json, advantages_json, baseline, weight in rows:
        rewards = json.loads(rewards_json)
        if advantages_json is None or len(set(rewards)) != 1 or not weight:
            continue
        history.append((baseline - (1.0 - weight) * rewards[0]) / weight)
        advantage.append(json.loads(advantages_json)[0])
        right.append(rewards[0] >= 1.0)
    x, y, solved = np.array(history), np.array(advantage), np.array(right)
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0.0, color=SOFT, linewidth=0.8)
    for mask, label, color in ((solved, "all right", OWN), (~solved, "all wrong", OTHER)):
        axes.scatter(
            x[mask], y[mask], s=6, alpha=0.35, color=color, edgecolors="none", label=f"{label} ({mask.sum()} groups)"
        )
    axes.set(
        title="advantage of groups from which GRPO learns nothing", xlabel="mean reward of the cluster before the step", ylabel="advantage"
    )  # fmt: skip
    axes.legend(frameon=False, markerscale=2.5)
    return finished(figure)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over the last steps."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - SMOOTHED_STEPS, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def finished(figure: Figure) -> Figure:
    """Without the frame."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    directory = RunDirectory(arguments.run)
    signal_picture(directory).savefig(arguments.out / "method_signal.png", dpi=150)
    uniform_groups_picture(directory).savefig(arguments.out / "method_groups.png", dpi=150)


if __name__ == "__main__":
    main()

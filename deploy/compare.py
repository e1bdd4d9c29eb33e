"""The same recipe under several estimators and seeds: equal samples, curves with their spread, one table."""

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.config import ConfigError, RunConfig, dump_config
from deploy.run_directory import RunDirectory
from deploy.summary import smooth
from moments_service.estimators.naming import configured

COLORS = ("#0b7285", "#c92a2a", "#e67700", "#5f3dc4", "#2b8a3e", "#495057")


class Comparison:
    """Runs every estimator with every seed, one after the other, each in a process of its own.

    A run whose summary.json stands in `out` is not run again, so that a comparison can be interrupted and extended.
    """

    def __init__(self, config: RunConfig, estimators: list[str], seeds: int, out: Path) -> None:
        try:
            self.moments = {spec: configured(config.moments, spec) for spec in estimators}
        except ValueError as error:
            raise ConfigError(f"--estimators: {error}") from None
        self.config = config
        self.estimators = estimators
        self.seeds = range(seeds)
        self.out = out.resolve()

    def run(self, console: Console) -> None:
        """Run what is missing; write compare.json and compare.png after every run. Raises RuntimeError if a run fails."""
        self.out.mkdir(parents=True, exist_ok=True)
        recipe = self.out / "recipe.yaml"
        text = dump_config(self.config)
        if recipe.exists() and recipe.read_text() != text:
            raise ConfigError(f"{self.out} holds a comparison of another recipe; name another --out or remove it")
        recipe.write_text(text)
        # Seeds outside, so that estimators stay level when a comparison is cut short.
        jobs = [(estimator, seed) for seed in self.seeds for estimator in self.estimators]
        for number, (estimator, seed) in enumerate(jobs, 1):
            if self._finished(estimator, seed) is None:
                console.print(f"run {number} of {len(jobs)}: {estimator}, seed {seed}")
                self._train(recipe, estimator, seed)
            self.write()

    def write(self) -> None:
        """compare.json and compare.png from the runs that are finished."""
        summaries = self.summaries()
        (self.out / "compare.json").write_text(json.dumps(summaries, indent=2) + "\n")
        if any(summaries.values()):
            self._draw()

    def summaries(self) -> dict[str, list[dict[str, Any]]]:
        """summary.json of each finished run, by estimator, in the order of the seeds."""
        return {
            estimator: [
                json.loads(run.summary.read_text())
                for seed in self.seeds
                if (run := self._finished(estimator, seed)) is not None
            ]
            for estimator in self.estimators
        }

    def table(self) -> Table:
        """pass@1 at the end and over the whole run, and the share of groups with signal; mean and deviation over seeds."""
        table = Table(title=f"{self.config.name}: pass@1 after {self.config.steps} steps", title_style="bold")
        table.add_column("estimator")
        for name in ("n", "train", "held out", "whole run", "signal"):
            table.add_column(name, justify="right", no_wrap=True)
        for estimator, summaries in self.summaries().items():
            curves = [self._curve(estimator, seed) for seed in self.seeds if self._finished(estimator, seed)]
            table.add_row(
                estimator,
                str(len(summaries)),
                _spread([summary["train"]["end"] for summary in summaries]),
                _spread([summary["held_out"]["end"] for summary in summaries]),
                _spread([mean(curve) for curve in curves]),
                _spread([summary["signal_ratio"]["own"] for summary in summaries]),
            )
        return table

    def _finished(self, estimator: str, seed: int) -> RunDirectory | None:
        runs = sorted((self.out / "runs").glob(f"{_run_name(estimator, seed)}-*/summary.json"))
        return RunDirectory(runs[-1].parent) if runs else None

    def _curve(self, estimator: str, seed: int) -> list[float]:
        run = self._finished(estimator, seed)
        return [] if run is None else [row["reward/pass_at_1"] for row in run.read_metrics()]

    def _train(self, recipe: Path, estimator: str, seed: int) -> None:
        settings = {
            "name": _run_name(estimator, seed),
            "seed": seed,
            "moments": self.moments[estimator].model_dump_json(),
            "runs_dir": self.out / "runs",
            "checkpoint.every": 0,
        }
        command = [sys.executable, "-m", "deploy.cli", "train", str(recipe)]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        log = self.out / f"{_run_name(estimator, seed)}.log"
        with log.open("w") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if code != 0:
            raise RuntimeError(f"the run of {estimator} with seed {seed} ended with code {code}; see {log}")

    def _draw(self) -> None:
        from matplotlib.figure import Figure  # half a second to import, and only pictures need it

        figure = Figure(figsize=(7.5, 4), layout="constrained")
        axes = figure.subplots()
        for estimator, color in zip(self.estimators, COLORS * 4, strict=False):
            curves = [smooth(curve) for seed in self.seeds if (curve := self._curve(estimator, seed))]
            if not curves:
                continue
            steps = range(1, len(curves[0]) + 1)
            columns = list(zip(*curves, strict=True))
            axes.plot(
                steps,
                [mean(column) for column in columns],
                color=color,
                linewidth=2,
                label=f"{estimator} (n={len(curves)})",
            )
            axes.fill_between(
                steps, [min(c) for c in columns], [max(c) for c in columns], color=color, alpha=0.15, linewidth=0
            )
        samples = self.config.batch_groups * self.config.group_size
        axes.set(
            title=f"{self.config.name}: group size {self.config.group_size}, {samples} samples a step",
            xlabel="policy step",
            ylabel="pass@1 on training prompts",
            ylim=(0, None),
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, loc="upper left")
        figure.savefig(self.out / "compare.png", dpi=130)


def _run_name(estimator: str, seed: int) -> str:
    """`bv_blend:paper:update_rate=0.1` is no name of a directory."""
    return f"{re.sub('[^A-Za-z0-9._-]', '-', estimator)}-seed{seed}"


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")

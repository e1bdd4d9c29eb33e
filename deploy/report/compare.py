"""The same recipe under several estimators, settings and seeds: equal samples, curves with their spread, one table."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.import_path import module_command, module_environment
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, dump_config
from deploy.report.numbers import mean_of_known, shown
from deploy.report.progress import bar
from deploy.report.summary import column, picture_text, png, smooth
from deploy.report.variations import Variant, variants
from deploy.report.visible import one_line
from deploy.rundir.layout import RunDirectory
from deploy.rundir.lines import read_object
from moments_service import durable

COLORS = ("#0b7285", "#c92a2a", "#e67700", "#5f3dc4", "#2b8a3e", "#495057")
LINES = ("-", "--", ":", "-.")


class Comparison:
    """Runs every variant (an estimator, and one value of every setting that is varied) with every seed, one after the other,
    each in a process of its own.

    A run whose summary.json stands in `out` is not run again, so that a comparison can be interrupted and extended.
    """

    def __init__(
        self, config: RunConfig, estimators: Sequence[str], seeds: int, out: Path, vary: Sequence[str] = ()
    ) -> None:
        """estimators, vary: see `variants`. Raises ConfigError before anything runs."""
        self.config = config
        self.variants = variants(config, estimators, vary)
        self.seeds = range(seeds)
        self.out = out.resolve()

    def run(self, console: Console) -> None:
        """Run what is missing; write compare.json and compare.png after every run. Raises RuntimeError if a run fails."""
        self.out.mkdir(parents=True, exist_ok=True)
        recipe = self.out / "recipe.yaml"
        text = dump_config(self.config)
        if recipe.exists() and recipe.read_text(encoding="utf-8") != text:
            raise ConfigError(f"{self.out} holds a comparison of another recipe; name another --out or remove it")
        durable.write_text(recipe, text)
        # Seeds outside, so that variants stay level when a comparison is cut short.
        jobs = [(variant, seed) for seed in self.seeds for variant in self.variants]
        with bar(console, "runs") as advance:
            for number, (variant, seed) in enumerate(jobs, 1):
                advance(number - 1, len(jobs))
                if self._finished(variant, seed) is None:
                    console.print(f"run {number} of {len(jobs)}: {variant.name}, seed {seed}")
                    self._train(recipe, variant, seed)
                self.write()

    def write(self) -> None:
        """compare.json and compare.png from the runs that are finished."""
        summaries = self.summaries()
        durable.write_json(self.out / "compare.json", summaries, indent=2)
        if any(summaries.values()):
            self._draw()

    def summaries(self) -> dict[str, list[dict[str, Any]]]:
        """summary.json of each finished run, by name of the variant (the estimator, and what is varied behind it), in the
        order of the seeds."""
        return {
            variant.name: [
                read_object(run.summary) for seed in self.seeds if (run := self._finished(variant, seed)) is not None
            ]
            for variant in self.variants
        }

    def table(self) -> Table:
        """pass@1 at the end and over the whole run, mean and deviation over seeds; and the effective signal."""
        table = Table(
            title=f"{self.config.name}: pass@1 after {self._same('steps')} steps",
            title_style="bold",
            caption="whole run: mean over the samples that were drawn, which depend on prompts.order and max_group_size",
        )
        table.add_column("estimator", overflow="fold")
        for name in ("n", "train", "held out", "whole run", "signal"):
            table.add_column(name, justify="right", no_wrap=True)
        for variant, summaries in zip(self.variants, self.summaries().values(), strict=True):
            curves = [self._curve(variant, seed) for seed in self.seeds if self._finished(variant, seed)]
            table.add_row(
                one_line(variant.name),
                str(len(summaries)),
                _spread([summary["train"]["end"] for summary in summaries]),
                _spread([end for summary in summaries if (end := summary["held_out"]["end"]) is not None]),
                _spread([mean(curve) for curve in curves]),
                shown(mean_of_known(summary.get("effective_signal", {}).get("own") for summary in summaries), ".0%"),
            )
        return table

    def _finished(self, variant: Variant, seed: int) -> RunDirectory | None:
        runs = sorted((self.out / "runs").glob(f"{_run_name(variant, seed)}-*/summary.json"))
        return RunDirectory(runs[-1].parent) if runs else None

    def _curve(self, variant: Variant, seed: int) -> list[float]:
        run = self._finished(variant, seed)
        return [] if run is None else column(run.read_metrics(), "reward/pass_at_1")

    def _train(self, recipe: Path, variant: Variant, seed: int) -> None:
        name = _run_name(variant, seed)
        own = (f"name={name}", f"seed={seed}", f"runs_dir={self.out / 'runs'}", "checkpoint.every=0")
        command = module_command("deploy.cli", "train", str(recipe))
        for setting in (*variant.overrides, *own):
            command += ["--set", setting]
        log = self.out / f"{name}.log"
        with log.open("wb") as file:
            environment = module_environment()
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
            ).returncode
        if code != 0:
            raise RuntimeError(f"the run of {variant.name} with seed {seed} ended with code {code}; see {log}")

    def _same(self, key: str) -> str:
        """The value of a key of the recipe, or its values where they differ between variants."""
        return " or ".join(dict.fromkeys(str(getattr(variant.config, key)) for variant in self.variants))

    def _draw(self) -> None:
        from matplotlib.figure import Figure  # half a second to import, and only pictures need it

        figure = Figure(figsize=(7.5, 4), layout="constrained")
        axes = figure.subplots()
        # A colour for each estimator, a kind of line for each combination of settings.
        estimators = list(dict.fromkeys(variant.estimator for variant in self.variants))
        combinations = list(dict.fromkeys(str(variant.settings) for variant in self.variants))
        for variant in self.variants:
            curves = [smooth(curve) for seed in self.seeds if (curve := self._curve(variant, seed))]
            if not curves:
                continue
            color = COLORS[estimators.index(variant.estimator) % len(COLORS)]
            line = LINES[combinations.index(str(variant.settings)) % len(LINES)]
            steps = range(1, len(curves[0]) + 1)
            columns = list(zip(*curves, strict=True))
            label = picture_text(f"{variant.name} (n={len(curves)})")
            axes.plot(steps, [mean(column) for column in columns], line, color=color, linewidth=2, label=label)
            axes.fill_between(
                steps, [min(c) for c in columns], [max(c) for c in columns], color=color, alpha=0.15, linewidth=0
            )
        axes.set(
            title=picture_text(
                f"{self.config.name}: {self._same('batch_groups')} groups of {self._same('group_size')} a step"
            ),
            xlabel="policy step",
            ylabel="pass@1 on training prompts",
            ylim=(0, None),
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, loc="upper left")
        durable.write_bytes(self.out / "compare.png", png(figure))


def _run_name(variant: Variant, seed: int) -> str:
    return f"{variant.run_name}-seed{seed}"


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")

"""`bvblend moments`: take moments out of a run, into another, together, and apart."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deploy.config import ConfigError, RunConfig, dump_config, load_recipe
from deploy.prompt_set import encoder_fingerprint
from deploy.run_directory import RunDirectory
from moments_service.clusters import load_clusters
from moments_service.portable import PortableMoments, WarmStart, differences, merge

moments_app = typer.Typer(help="Moments of one run for another: export, import, merge, diff", no_args_is_help=True)
console = Console()

Out = Annotated[Path, typer.Option(help="New directory to write", show_default=False)]
Exported = Annotated[Path, typer.Argument(help="Directory that `moments export` or `merge` wrote", show_default=False)]
Discount = Annotated[float, typer.Option(help="Share of the mass to keep, in (0, 1]")]


@moments_app.command("export")
def export_moments(
    source: Annotated[Path, typer.Argument(help="A run, or one of its checkpoints", show_default=False)], out: Out
) -> None:
    """Write the newest saved moments of a run. Example: bvblend moments export runs/latest --out moments-a"""
    portable = read_saved(source)
    _write(portable, out)
    console.print(f"{out}: {_sentence(portable)}", markup=False, highlight=False, soft_wrap=True)


@moments_app.command("import")
def import_moments(
    exported: Exported,
    recipe: Annotated[Path, typer.Argument(help="Recipe of the new run", show_default=False)],
    discount: Discount = 1.0,
    override: Annotated[list[str] | None, typer.Option("--set", help="Override a key", show_default=False)] = None,
) -> None:
    """Prepare a new run that begins with these moments. Example: bvblend moments import moments-a RECIPE --discount 0.5

    `bvblend train RECIPE --warm-start DIR` does the same and starts it.
    """
    config = load_recipe(recipe, override or ())
    start = read_warm_start(config, exported, None, discount)
    assert start is not None
    run = RunDirectory.create(Path(config.runs_dir), config.name, dump_config(config))
    start.place(run.moments)
    console.print(f"start it: bvblend train --resume {run.path}", markup=False, highlight=False, soft_wrap=True)


@moments_app.command("merge")
def merge_moments(first: Exported, second: Exported, out: Out) -> None:
    """Add two sets of moments of the same codebook. Example: bvblend moments merge moments-a moments-b --out moments-c"""
    try:
        merged = merge(PortableMoments.read(first), PortableMoments.read(second))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    _write(merged, out)
    console.print(f"{out}: {_sentence(merged)}", markup=False, highlight=False, soft_wrap=True)


@moments_app.command("diff")
def diff_moments(
    first: Exported,
    second: Exported,
    top: Annotated[int, typer.Option(min=1, help="How many clusters to show")] = 12,
) -> None:
    """Where two sets of moments disagree, surest first. Example: bvblend moments diff moments-a moments-b"""
    try:
        rows = differences(PortableMoments.read(first), PortableMoments.read(second))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    table = Table(title=f"{min(top, len(rows))} of {len(rows)} clusters", title_style="bold")
    for name in ("cluster", "mean A", "mean B", "B - A", "mass A", "mass B", "|B - A| sqrt(mass)"):
        table.add_column(name, justify="right")
    for row in rows[:top]:
        a, b = row.means
        numbers = (f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}", *(f"{mass:.1f}" for mass in row.masses), f"{row.score:.2f}")
        table.add_row(str(row.cluster), *numbers)
    console.print(table)


def read_warm_start(
    config: RunConfig, exported: Path | None, codebook: Path | None, discount: float
) -> WarmStart | None:
    """What the new run begins with; None where neither is named. Raises ConfigError if it does not fit the run."""
    if exported is None and codebook is None:
        if discount != 1.0:
            raise ConfigError("--discount is the share of imported moments to keep; name them with --warm-start")
        return None
    try:
        if exported is not None:
            portable = PortableMoments.read(exported).discounted(discount)
            start = WarmStart(portable.clusters, portable)
        else:
            assert codebook is not None
            start = WarmStart(load_clusters(codebook))
        start.refuse_misfit(config.moments, encoder_fingerprint(config))
    except ValueError as error:
        raise ConfigError(f"{exported or codebook}: {error}") from None
    return start


def newest_snapshot(run: RunDirectory) -> Path | None:
    """The newest saved moments of a run: its end, or its newest checkpoint; None if nothing was saved yet."""
    steps = run.checkpoint_steps()
    newest = run.checkpoint(steps[-1]) / "moments" if steps else None
    if not run.final_moments.exists():
        return newest
    # A finished run that was resumed for more steps has checkpoints past its former end.
    trained = len(run.read_metrics())
    return newest if newest is not None and steps[-1] >= trained else run.final_moments


def read_saved(source: Path) -> PortableMoments:
    """Moments of a run or of one checkpoint of it. Raises ConfigError if there are none."""
    run = RunDirectory(source)
    snapshot = newest_snapshot(run) if run.config.exists() else source / "moments"
    if not run.config.exists():
        run = RunDirectory(source.resolve().parents[1])
        if not run.config.exists() or not (source / "run.json").exists():
            raise ConfigError(f"{source} is neither a run nor a checkpoint of one")
    if snapshot is None:
        raise ConfigError(f"{source}: nothing is saved yet; a run saves its moments in every checkpoint and at its end")
    config = load_recipe(run.config)
    try:
        return PortableMoments.from_snapshot(snapshot, config.moments, config.policy, run.path.name)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _write(portable: PortableMoments, out: Path) -> None:
    try:
        portable.write(out)
    except ValueError as error:
        raise ConfigError(f"--out: {error}") from None


def _sentence(portable: PortableMoments) -> str:
    about = portable.about
    return (
        f"moments of {len(portable.clusters)} clusters by {portable.clusters.by} after {about.steps} steps of {about.run}; "
        f"codebook {about.codebook}, encoder {about.encoder or 'none'}, {about.counts.groups} groups"
    )

"""`bvblend moments`: take moments out of a run, into another, together, and apart.

Imports faiss and all that needs it late: `bvblend doctor` must run where packages are missing.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from deploy.cli.console import console
from deploy.cli.options import Overrides
from deploy.cli.places import new_run_directory, writing
from deploy.config.recipe import ConfigError, load_recipe
from deploy.rundir.find import find_run, load_run_config

if TYPE_CHECKING:
    from moments_service.offline.portable import PortableMoments

moments_app = typer.Typer(
    help="Moments of one run for another: export, import, merge, diff; or made again: rebuild", no_args_is_help=True
)

Out = Annotated[Path, typer.Option(help="New directory to write", show_default=False)]
Exported = Annotated[Path, typer.Argument(help="Directory that `moments export` or `merge` wrote", show_default=False)]
Discount = Annotated[float, typer.Option(help="Share of the mass to keep, in (0, 1]")]


@moments_app.command("export")
def export_moments(
    source: Annotated[Path, typer.Argument(help="A run, or one of its checkpoints", show_default=False)], out: Out
) -> None:
    """Write the newest saved moments of a run. Example: bvblend moments export runs/latest --out moments-a"""
    from deploy.rundir.saved_moments import read_saved

    portable = read_saved(source)
    _write(portable, out)
    console.print(f"{out}: {_sentence(portable)}", soft_wrap=True)


@moments_app.command("import")
def import_moments(
    exported: Exported,
    recipe: Annotated[Path, typer.Argument(help="Recipe of the new run", show_default=False)],
    discount: Discount = 1.0,
    override: Overrides = None,
) -> None:
    """Prepare a new run that begins with these moments. Example: bvblend moments import moments-a RECIPE --discount 0.5

    `bvblend train RECIPE --warm-start DIR` does the same and starts it.
    """
    from deploy.run.warm_start import read_warm_start

    config = load_recipe(recipe, override or ())
    start = read_warm_start(config, exported, None, discount)
    assert start is not None
    run = new_run_directory(config)
    start.place(run.moments)
    console.print(f"start it: bvblend train --resume {run.path}", soft_wrap=True)


@moments_app.command("merge")
def merge_moments(first: Exported, second: Exported, out: Out) -> None:
    """Add two sets of moments of the same codebook. Example: bvblend moments merge moments-a moments-b --out moments-c"""
    from moments_service.offline.portable import PortableMoments, merge

    try:
        merged = merge(PortableMoments.read(first), PortableMoments.read(second))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    _write(merged, out)
    console.print(f"{out}: {_sentence(merged)}", soft_wrap=True)


@moments_app.command("diff")
def diff_moments(
    first: Exported,
    second: Exported,
    top: Annotated[int, typer.Option(min=1, help="How many clusters to show")] = 12,
) -> None:
    """Where two sets of moments disagree, surest first. Example: bvblend moments diff moments-a moments-b"""
    from moments_service.offline.portable import PortableMoments, differences

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


@moments_app.command("rebuild")
def rebuild_moments(
    run: Annotated[Path, typer.Argument(help="A run", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="New directory to write, as `moments export` does", show_default=False)
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=1, help="As they were after so many steps; else after all", show_default=False)
    ] = None,
) -> None:
    """Make a run's moments again from its ledger, and compare. Example: bvblend moments rebuild runs/latest --step 50"""
    from deploy.report.progress import progress
    from deploy.report.rebuilding import rebuild_run

    directory = find_run(run)
    with progress(console, "steps") as advance:
        rebuilt = rebuild_run(load_run_config(directory), directory, step, advance)
    console.print(f"{rebuilt.transactions} transactions in {rebuilt.parts} parts of the ledger are whole")
    console.print(_sentence(rebuilt.portable), soft_wrap=True)
    style = {True: "green", False: "bold red", None: "yellow"}[rebuilt.same]
    console.print(rebuilt.compared, style=style, soft_wrap=True)
    if out is not None:
        _write(rebuilt.portable, out)
        console.print(f"{out}: begin a run with it: bvblend train RECIPE --warm-start {out}", soft_wrap=True)
    if rebuilt.same is False:
        raise typer.Exit(4)


def _write(portable: "PortableMoments", out: Path) -> None:
    try:
        with writing(out):
            portable.write(out)
    except ValueError as error:
        raise ConfigError(f"--out: {error}") from None


def _sentence(portable: "PortableMoments") -> str:
    about = portable.about
    return (
        f"moments of {len(portable.clusters)} clusters by {portable.clusters.by} after {about.steps} steps of {about.run}; "
        f"codebook {about.codebook}, encoder {about.encoder or 'none'}, {about.counts.groups} groups"
    )

"""`bvblend clusters`: make a codebook, and see what is in one.

Imports faiss and all that needs it late: `bvblend doctor` must run where packages are missing.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.console import console
from deploy.cli.options import Overrides
from deploy.cli.places import writing
from deploy.config.recipe import ConfigError, load_recipe
from deploy.rundir.find import find_run, load_run_config
from deploy.rundir.layout import RunDirectory

clusters_app = typer.Typer(help="The clusters whose prompts share their history: fit, show", no_args_is_help=True)


@clusters_app.command()
def fit(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe", show_default=False)],
    out: Annotated[Path, typer.Option(help="File to write", show_default=False)],
    count: Annotated[str | None, typer.Option(help="Number of clusters or `auto`; the recipe's if left out")] = None,
    override: Overrides = None,
) -> None:
    """Make the clusters of a recipe's prompts. Example: bvblend clusters fit RECIPE --count auto --out codebook.safetensors

    A run begins with them by `bvblend train RECIPE --codebook FILE`.
    """
    import numpy as np

    from deploy.report.clusters import choice_table
    from deploy.report.progress import EMBEDDING, progress
    from deploy.run.launch import read_pool
    from deploy.run.prompt_lengths import fitting
    from deploy.run.prompt_set import prompt_set
    from moments_service.clusters import choose_count, fit_clusters
    from moments_service.seeding import derive_seed

    chosen = [f"moments.clusters.count={count}"] if count is not None else []
    config = load_recipe(recipe, [*(override or ()), *chosen])
    with progress(console, EMBEDDING) as advance:
        prompts = prompt_set(config, fitting(config, read_pool(config)).train, advance)
    seed = derive_seed(config.seed, "codebook")
    if config.moments.clusters.by == "embedding" and config.moments.clusters.count == "auto":
        console.print(choice_table(choose_count(prompts.embedded(), seed)))
    clusters = fit_clusters(config.moments.clusters, prompts, seed)
    with writing(out):
        clusters.save(out)
    sizes = np.bincount(clusters.assign_prompts(prompts), minlength=len(clusters))
    console.print(f"{len(clusters)} clusters by {clusters.by}, {len(prompts)} prompts, codebook {clusters.fingerprint}")
    console.print(f"prompts per cluster: {', '.join(map(str, sorted(sizes.tolist(), reverse=True)))}")
    console.print(str(out), soft_wrap=True)


@clusters_app.command()
def show(
    source: Annotated[Path, typer.Argument(help="A run or a recipe", show_default=False)], override: Overrides = None
) -> None:
    """What each cluster holds, with prompts nearest to its centre. Example: bvblend clusters show runs/latest"""
    from deploy.report.clusters import clusters_in_force, clusters_table
    from deploy.report.progress import EMBEDDING, progress
    from deploy.run.launch import read_pool
    from deploy.run.prompt_lengths import fitting
    from deploy.run.prompt_set import prompt_set
    from deploy.rundir.saved_moments import newest_snapshot, read_saved

    run = find_run(source) if source.is_dir() or _leads_nowhere(source) else RunDirectory(source)
    is_run = run.config.exists()
    config = load_run_config(run, override or ()) if is_run else load_recipe(source, override or ())
    pool = fitting(config, read_pool(config))
    with progress(console, EMBEDDING) as advance:
        prompts = prompt_set(config, pool.train, advance)
    saved = read_saved(source) if is_run and newest_snapshot(run) is not None else None
    clusters = saved.clusters if saved else clusters_in_force(run, config, prompts)
    try:
        table = clusters_table(clusters, pool.train, prompts, saved.moments if saved else None)
    except ValueError as error:
        raise ConfigError(f"{source}: its clusters are not of these prompts and this encoder: {error}") from None
    console.print(table)


def _leads_nowhere(path: Path) -> bool:
    return os.path.lexists(path) and not path.exists()

"""`bvblend clusters`: make a codebook, and see what is in one."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from actors.prompts import Prompt
from deploy.config import ConfigError, RunConfig, load_recipe
from deploy.prompt_set import prompt_set
from deploy.run_directory import RunDirectory
from moments_service.clusters import Clusters, Codebook, PromptSet, choose_count, fit_clusters, load_clusters
from moments_service.clusters.fitting import PAYS, PROMPTS_PER_CLUSTER
from moments_service.clusters.versions import ClusterVersions
from moments_service.moments import History
from moments_service.seeding import derive_seed

clusters_app = typer.Typer(help="The clusters whose prompts share their history: fit, show", no_args_is_help=True)
console = Console()

EXEMPLARS = 3
_EXEMPLAR_CHARS = 70

Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key", show_default=False)]


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
    from deploy.launch import read_pool

    chosen = [f"moments.clusters.count={count}"] if count is not None else []
    config = load_recipe(recipe, [*(override or ()), *chosen])
    prompts = prompt_set(config, read_pool(config).train)
    seed = derive_seed(config.seed, "codebook")
    if config.moments.clusters.by == "embedding" and config.moments.clusters.count == "auto":
        choice = choose_count(prompts.embedded(), seed)
        table = Table(title=f"K = {choice.count}: the last doubling that pays", title_style="bold")
        for name in ("K", "cosine of kept-out prompts", "nearer than K/2 by"):
            table.add_column(name, justify="right")
        for candidate, cosine in choice.cosines.items():
            half = choice.cosines.get(candidate // 2)
            gain = "" if half is None else f"{1 - (1 - cosine) / (1 - half):.1%}"
            table.add_row(str(candidate), f"{cosine:.3f}", gain, style="bold" if candidate == choice.count else None)
        console.print(table)
        console.print(f"a doubling pays at {PAYS:.0%}; at least {PROMPTS_PER_CLUSTER} prompts per cluster on average")
    clusters = fit_clusters(config.moments.clusters, prompts, seed)
    clusters.save(out)
    sizes = np.bincount(clusters.assign_prompts(prompts), minlength=len(clusters))
    console.print(f"{len(clusters)} clusters by {clusters.by}, {len(prompts)} prompts, codebook {clusters.fingerprint}")
    console.print(f"prompts per cluster: {', '.join(map(str, sorted(sizes.tolist(), reverse=True)))}")
    console.print(str(out), markup=False, highlight=False, soft_wrap=True)


@clusters_app.command()
def show(
    source: Annotated[Path, typer.Argument(help="A run or a recipe", show_default=False)], override: Overrides = None
) -> None:
    """What each cluster holds, with prompts nearest to its centre. Example: bvblend clusters show runs/latest"""
    from deploy.launch import read_pool
    from deploy.moments_cli import newest_snapshot, read_saved

    run = RunDirectory(source)
    config = load_recipe(run.config if run.config.exists() else source, override or ())
    pool = read_pool(config)
    prompts = prompt_set(config, pool.train)
    history: History | None = None
    if run.config.exists() and newest_snapshot(run) is not None:
        saved = read_saved(source)
        clusters, history = saved.clusters, saved.moments.history(np.arange(len(saved.clusters)))
    else:
        clusters = _clusters_of(run, config, prompts)
    console.print(clusters_table(clusters, pool.train, prompts, history))


def clusters_table(clusters: Clusters, pool: tuple[Prompt, ...], prompts: PromptSet, history: History | None) -> Table:
    """One row a living cluster, largest first: size, sources, moments if there are any, exemplar prompts."""
    assigned = clusters.assign_prompts(prompts)
    sizes = np.bincount(assigned, minlength=len(clusters))
    living = np.flatnonzero(clusters.heirs == np.arange(len(clusters)))
    retired = len(clusters) - len(living)
    title = f"{len(living)} clusters by {clusters.by}" + (f", {retired} retired" if retired else "")
    table = Table(title=f"{title}; codebook {clusters.fingerprint}", title_style="bold", show_lines=True)
    for name in ("id", "prompts"):
        table.add_column(name, justify="right")
    table.add_column("mostly")
    if history is not None:
        for name in ("mean", "between", "mass"):
            table.add_column(name, justify="right")
    table.add_column("exemplars", ratio=1)
    for cluster in sorted(living.tolist(), key=lambda cluster: (-sizes[cluster], cluster)):
        members = np.flatnonzero(assigned == cluster)
        numbers = () if history is None else _numbers(history, cluster)
        # Prompts are what a data set says; they are shown as text and never as markup.
        texts = [shortened(pool[row].text) for row in exemplars(clusters, prompts, members, cluster)]
        name = Text(", ".join(sources_of([pool[row].source for row in members])))
        table.add_row(str(cluster), str(sizes[cluster]), name, *numbers, Text("\n".join(texts)))
    return table


def exemplars(clusters: Clusters, prompts: PromptSet, members: np.ndarray, cluster: int) -> np.ndarray:
    """Rows of the members that show best what a cluster is: nearest to its centroid, or the first ones."""
    if isinstance(clusters, Codebook) and len(members):
        cosines = clusters.cosines(prompts.embedded()[members], np.full(len(members), cluster))
        members = members[np.argsort(-cosines, kind="stable")]
    return members[:EXEMPLARS]


def sources_of(sources: list[str]) -> list[str]:
    """The one or two sources that most prompts come from."""
    return [source for source, count in Counter(sources).most_common(2) if count >= 0.2 * len(sources)]


def shortened(text: str) -> str:
    """The end of a prompt on one line, without control characters: its beginning is often the same in all of them."""
    line = "".join(char if char.isprintable() else " " for char in " ".join(text.split()))
    return line if len(line) <= _EXEMPLAR_CHARS else "…" + line[-_EXEMPLAR_CHARS:]


def _numbers(history: History, cluster: int) -> tuple[str, str, str]:
    if not history.seen[cluster]:
        return "", "", "0"
    return f"{history.mean[cluster]:.3f}", f"{history.between[cluster]:.3f}", f"{history.mass[cluster]:.1f}"


def _clusters_of(run: RunDirectory, config: RunConfig, prompts: PromptSet) -> Clusters:
    """The version in force in a run, or what a recipe would make."""
    try:
        path = ClusterVersions(run.moments, 0).in_force() if run.moments.exists() else None
        if path is not None:
            return load_clusters(path)
        return fit_clusters(config.moments.clusters, prompts, derive_seed(config.seed, "codebook"))
    except ValueError as error:
        raise ConfigError(str(error)) from None

"""Clusters for people to read: how their number was chosen, what each holds."""

from collections import Counter

import numpy as np
from rich.table import Table

from actors.prompts.prompt import Prompt
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError
from deploy.report.visible import one_line
from deploy.rundir.layout import RunDirectory
from moments_service.clusters import Clusters, Codebook, PromptSet, fit_clusters, load_clusters
from moments_service.clusters.fitting import PAYS, PROMPTS_PER_CLUSTER, CountChoice
from moments_service.clusters.versions import ClusterVersions
from moments_service.moments import ClusterMoments, History
from moments_service.seeding import derive_seed

EXEMPLARS = 3
_EXEMPLAR_CHARS = 70


def choice_table(choice: CountChoice) -> Table:
    """What the rule for `count: auto` saw."""
    table = Table(
        title=f"K = {choice.count}: the last doubling that pays",
        title_style="bold",
        caption=f"a doubling pays from {PAYS:.0%} on; no more clusters than one for {PROMPTS_PER_CLUSTER} prompts",
    )
    for name in ("K", "cosine of kept-out prompts", "nearer than at K/2 by"):
        table.add_column(name, justify="right")
    for candidate, cosine in choice.cosines.items():
        half = choice.cosines.get(candidate // 2)
        gain = "" if half is None else f"{1 - (1 - cosine) / (1 - half):.1%}"
        table.add_row(str(candidate), f"{cosine:.3f}", gain, style="bold" if candidate == choice.count else None)
    return table


def clusters_table(
    clusters: Clusters, pool: tuple[Prompt, ...], prompts: PromptSet, moments: ClusterMoments | None
) -> Table:
    """One row a living cluster, largest first: size, sources, moments if there are any, exemplar prompts."""
    assigned = clusters.assign_prompts(prompts)
    sizes = np.bincount(assigned, minlength=len(clusters))
    living = np.flatnonzero(clusters.heirs == np.arange(len(clusters)))
    retired = len(clusters) - len(living)
    history = None if moments is None else moments.history(np.arange(len(clusters)))
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
        texts = [shortened(pool[row].text) for row in exemplars(clusters, prompts, members, cluster)]
        mostly = one_line(main_sources(Counter(pool[row].source for row in members)))
        table.add_row(str(cluster), str(sizes[cluster]), mostly, *numbers, "\n".join(texts))
    return table


def exemplars(clusters: Clusters, prompts: PromptSet, members: np.ndarray, cluster: int) -> np.ndarray:
    """Rows of the members that show best what a cluster is: nearest to its centroid, or the first ones."""
    if isinstance(clusters, Codebook) and len(members):
        cosines = clusters.cosines(prompts.embedded()[members], np.full(len(members), cluster))
        members = members[np.argsort(-cosines, kind="stable")]
    return members[:EXEMPLARS]


def main_sources(counts: Counter[str]) -> str:
    """The one or two sources that most of what is counted comes from."""
    return ", ".join(source for source, count in counts.most_common(2) if count >= 0.2 * counts.total())


def shortened(text: str) -> str:
    """The end of a prompt on one line, without control characters: its beginning is often the same in all of them."""
    line = "".join(char if char.isprintable() else " " for char in " ".join(text.split()))
    return line if len(line) <= _EXEMPLAR_CHARS else "…" + line[-_EXEMPLAR_CHARS:]


def _numbers(history: History, cluster: int) -> tuple[str, str, str]:
    if not history.seen[cluster]:
        return "", "", "0"
    return f"{history.mean[cluster]:.3f}", f"{history.between[cluster]:.3f}", f"{history.mass[cluster]:.1f}"


def clusters_in_force(run: RunDirectory, config: RunConfig, prompts: PromptSet) -> Clusters:
    """The version in force in a run, or what a recipe would make."""
    try:
        path = ClusterVersions(run.moments, 0).in_force() if run.moments.exists() else None
        if path is not None:
            return load_clusters(path)
        return fit_clusters(config.moments.clusters, prompts, derive_seed(config.seed, "codebook"))
    except ValueError as error:
        raise ConfigError(str(error)) from None

"""What the page shows of clusters: the map with the moments of each, and one cluster closely."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from deploy.config.recipe import ConfigError
from deploy.dashboard.cluster_map import Points, projected, pushed_apart, spiral
from deploy.dashboard.group_view import listed
from deploy.dashboard.shown_text import excerpt
from deploy.report.clusters import main_sources
from deploy.rundir.find import load_run_config
from deploy.rundir.groups import Wanted
from deploy.rundir.open_run import NoLedgerError, OpenRun
from deploy.rundir.saved_moments import newest_snapshot
from deploy.rundir.thinning import Thinning, rounded
from moments_service.clusters import Codebook, load_clusters
from moments_service.clusters.versions import ClusterVersions
from moments_service.state import MomentsState

MOST_SHOWN = 600
"""Clusters on the map; the lightest of more are left out, and counted."""
HISTORY_SPANS = 200
EXEMPLARS = 5
EXEMPLAR_CHARS = 400
_SEARCHED_FOR_EXEMPLARS = 400
_TRIED_FOR_EXEMPLARS = 20


class ClusterUnknownError(LookupError):
    """The run has no such cluster."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One version of the clusters on the map."""

    version: str
    by: str
    points: Points
    """[K, 2] in [-1, 1]."""
    living: list[bool]
    labels: tuple[str, ...]
    """Of clusters by a label; empty for those of embeddings."""


@dataclass(slots=True)
class ClusterViews:
    """Layouts of codebooks, each worked out once. Safe from several threads."""

    _layouts: dict[Path, Layout] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def layout(self, run: OpenRun) -> Layout | None:
        """Of the version in force; None before there is one."""
        moments = run.directory.moments
        path = ClusterVersions(moments, 0).in_force() if moments.exists() else None
        if path is None:
            return None
        with self._lock:
            if path not in self._layouts:
                while len(self._layouts) >= 16:
                    del self._layouts[next(iter(self._layouts))]
                self._layouts[path] = _layout(path)
            return self._layouts[path]

    def overview(self, run: OpenRun) -> dict[str, Any]:
        """The map: every living cluster with its place and its moments, heaviest first."""
        layout = self.layout(run)
        if layout is None:
            return {"version": None, "by": "", "clusters": [], "left_out": 0, "step": None}
        numbers, step = current_moments(run)
        names = _names(run, layout)
        rows = []
        for cluster in np.flatnonzero(layout.living).tolist():
            x, y = layout.points[cluster].tolist()
            row = {"id": cluster, "name": names.get(cluster, ""), "x": round(x, 4), "y": round(y, 4)}
            rows.append(row | {name: _at(values, cluster) for name, values in numbers.items()})
        rows.sort(key=lambda row: (-(row.get("mass") or 0.0), row["id"]))
        return {
            "version": layout.version,
            "by": layout.by,
            "clusters": rows[:MOST_SHOWN],
            "left_out": max(0, len(rows) - MOST_SHOWN),
            "retired": layout.living.count(False),
            "step": step,
        }

    def detail(self, run: OpenRun, cluster: int) -> dict[str, Any]:
        """One cluster: its moments, how its rewards and the trust in it went, exemplar prompts, its last groups.

        Raises ClusterUnknownError.
        """
        layout = self.layout(run)
        if layout is None or not 0 <= cluster < len(layout.points):
            raise ClusterUnknownError(f"run {run.name} has no cluster {cluster}")
        numbers, _ = current_moments(run)
        about: dict[str, Any] = {"id": cluster, "name": _names(run, layout).get(cluster, "")}
        about |= {name: _at(values, cluster) for name, values in numbers.items()}
        try:
            groups = run.groups()
        except NoLedgerError as error:
            return about | {"history": {}, "exemplars": [], "groups": [], "note": str(error)}
        history = groups.history(cluster, HISTORY_SPANS)
        about["count"] = groups.count(Wanted(cluster=cluster))
        about["history"] = {
            "reward": _history(history.steps, history.reward),
            "trust": _history(history.steps, history.trust),
        }
        prompts = groups.prompts(cluster, _SEARCHED_FOR_EXEMPLARS, _TRIED_FOR_EXEMPLARS, EXEMPLARS)
        about["exemplars"] = [
            {"source": source, "prompt": excerpt(prompt.strip(), limit=EXEMPLAR_CHARS)} for source, prompt in prompts
        ]
        about["groups"] = listed(groups, groups.search(Wanted(cluster=cluster), limit=10))
        return about


def current_moments(run: OpenRun) -> tuple[dict[str, list[Any]], int | None]:
    """(name -> a value for each cluster, steps behind them): as the driver last said, else as last saved.

    Names: mean, variance, mass, weight, seen. Empty where nothing is known.
    """
    live = run.live()
    stats = live.get("moments")
    if isinstance(stats, dict) and isinstance(stats.get("clusters"), dict):
        return {name: list(values) for name, values in stats["clusters"].items()}, live.get("step")
    return _saved_moments(run)


def _saved_moments(run: OpenRun) -> tuple[dict[str, list[Any]], int | None]:
    snapshot = newest_snapshot(run.directory)
    if snapshot is None:
        return {}, None
    try:
        clusters = load_clusters(snapshot / "codebook.safetensors")
        state = MomentsState(load_run_config(run.directory).moments, len(clusters))
        state.load(snapshot)
    except (ConfigError, ValueError, KeyError, SafetensorError):
        return {}, None  # of an older version; the map says that it has no moments
    return state.cluster_stats(), state.last_step + 1


def _history(steps: np.ndarray, means: np.ndarray) -> dict[str, Any]:
    known = ~np.isnan(means)
    steps, means = steps[known], means[known]
    return {
        "steps": steps.tolist(),
        "values": rounded(means),
        "trend": rounded(Thinning(len(means)).trend(means)),
    }


def _layout(path: Path) -> Layout:
    try:
        clusters = load_clusters(path)
    except ValueError as error:
        raise ConfigError(f"the clusters of this run cannot be read by this version: {error}") from None
    living = (clusters.heirs == np.arange(len(clusters))).tolist()
    if isinstance(clusters, Codebook):
        return Layout(path.name, clusters.by, pushed_apart(projected(clusters.centroids)), living, ())
    labels = tuple(getattr(clusters, "labels", ()))
    return Layout(path.name, clusters.by, spiral(len(clusters)), living, labels)


def _names(run: OpenRun, layout: Layout) -> dict[int, str]:
    """What each cluster holds, in a few words: its label, or the sources that most of its groups come from."""
    if layout.labels:
        return {cluster: excerpt(label, limit=60)["text"] for cluster, label in enumerate(layout.labels)}
    try:
        counts = run.groups().sources_of_clusters()
    except NoLedgerError:
        return {}
    return {cluster: main_sources(sources) for cluster, sources in counts.items()}


def _at(values: list[Any], cluster: int) -> Any:
    """A number of one cluster; None where the cluster is newer than the numbers."""
    value = values[cluster] if cluster < len(values) else None
    return round(value, 6) if isinstance(value, float) else value

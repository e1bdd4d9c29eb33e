"""`bvblend top`: a run in the terminal, live or finished, from its directory alone."""

import time
from math import nan
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deploy.report.live import HISTORY, SHOWN_MOMENTS, RunView
from deploy.report.numbers import duration, shown
from deploy.report.visible import one_line, visible
from deploy.rundir.layout import RunDirectory
from deploy.rundir.open_run import ALL_OF_IT_S, OpenRun
from moments_service.health import Alarm

REFRESH_S = 1.0
ALARMS_SHOWN = 3
COLORS = {
    "running": "green",
    "done": "cyan",
    "paused": "yellow",
    "failed": "red",
    "stopped": "yellow",
    "killed": "red",
    "broken": "red",
}


def watch(directory: RunDirectory, console: Console, once: bool) -> None:
    """Draw the run again and again until it is not running any more; once: draw it once, as without a terminal."""
    run = OpenRun(directory)
    picture = _draw(run)
    if once or not console.is_terminal:
        console.print(picture)
        return
    with Live(picture, console=console, auto_refresh=False, screen=False) as live:
        while run.status()["state"] in ("running", "paused"):
            time.sleep(REFRESH_S)
            live.update(_draw(run), refresh=True)


def _draw(run: OpenRun) -> RenderableType:
    run.catch_up(ALL_OF_IT_S)
    status, live = run.status(), run.live()
    parts: list[RenderableType] = [_head(status)]
    if status["problem"] is not None:
        parts.append(Text(visible(status["problem"]), style="red"))
    rows = [] if run.metrics.problem else run.directory.last_metrics(HISTORY)
    moments = _columns(live)
    if rows:
        view = RunView(status["planned"] or 0)
        view.names = live.get("cluster_names", ())
        for row in rows:
            view.add(row)
        parts.append(view.draw({"clusters": moments}))
    if live:
        parts.append(_services(live))
    for row in run.alarms()[-ALARMS_SHOWN:]:
        expected, found = (nan if row[name] is None else row[name] for name in ("expected", "found"))
        alarm = Alarm(row["kind"], row["cluster"], expected, found)
        parts.append(Text(visible(f"alarm at step {row['step'] + 1}: {alarm}"), style="red"))
    return Group(*parts)


def _head(status: dict[str, Any]) -> Text:
    state = status["state"]
    left = "" if status["eta_s"] is None else f"   about {duration(status['eta_s'])} left"
    return Text.assemble(
        (one_line(status["name"]), "bold"),
        "   ",
        (state, COLORS[state]),
        f"   step {status['steps']} of {status['planned'] or '–'}{left}",
    )


def _services(live: dict[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    moments, actors = live.get("moments", {}), live.get("actors", [])
    counts = moments.get("counts", {})
    serving = sum(actor.get("serving", False) for actor in actors)

    def of(found: dict[str, Any], name: str) -> str:
        return shown(found.get(name), ".0f")

    grid.add_row(
        "rollout",
        f"{serving} of {len(actors)} actors serve   {of(live, 'in_flight')} of {of(live, 'slots')} groups in flight   "
        f"{of(live, 'scored')} scored   {of(live, 'restarts')} restarts",
    )
    grid.add_row(
        "moments",
        f"{of(counts, 'groups')} groups   {of(counts, 'completions')} completions   {of(counts, 'errors')} without reward   "
        f"{of(counts, 'lost')} lost   policy version {of(live, 'policy_version')}",
    )
    if "written_at" in live:
        grid.add_row("as of", f"{duration(max(0.0, time.time() - live['written_at']))} ago")
    return grid


def _columns(live: dict[str, Any]) -> dict[str, list[float]]:
    """The moments of every cluster, as they are read from JSON, which has no NaN; cut to the shortest of their columns."""
    columns = live.get("moments", {}).get("clusters", {})
    found = [columns.get(name, []) for name in SHOWN_MOMENTS]
    rows = min(map(len, found))
    return {
        name: [nan if value is None else value for value in values[:rows]]
        for name, values in zip(SHOWN_MOMENTS, found, strict=True)
    }

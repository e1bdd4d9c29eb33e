"""`bvblend top`: a run in the terminal, live or finished, from its directory alone."""

import time
from math import nan
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deploy.report.live import HISTORY, RunView
from deploy.report.numbers import duration
from deploy.report.visible import one_line, visible
from deploy.rundir import lines
from deploy.rundir.layout import RunDirectory
from deploy.rundir.open_run import ALL_OF_IT_S, OpenRun
from moments_service.health import Alarm

REFRESH_S = 1.0
ALARMS_SHOWN = 3
COLORS = {"running": "green", "done": "cyan", "paused": "yellow", "failed": "red", "stopped": "yellow"}


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
    rows = run.directory.last_metrics(HISTORY)
    stats = live.get("moments", {})
    if rows and "clusters" in stats:
        view = RunView(status["planned"] or 0)
        view.names = live.get("cluster_names", ())
        for row in rows:
            view.add(row)
        parts.append(view.draw(_numbers(stats)))
    if live:
        parts.append(_services(live))
    alarms = lines.read(run.directory.alarms)
    for alarm in alarms[-ALARMS_SHOWN:]:
        step = alarm.pop("step")
        parts.append(Text(visible(f"alarm at step {step + 1}: {Alarm(**alarm)}"), style="red"))
    return Group(*parts)


def _head(status: dict[str, Any]) -> Text:
    state = status["state"]
    left = "" if status["eta_s"] is None else f"   about {duration(status['eta_s'])} left"
    return Text.assemble(
        (one_line(status["name"]), "bold"),
        "   ",
        (state, COLORS[state]),
        f"   step {status['steps']} of {status['planned']}{left}",
    )


def _services(live: dict[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    counts = live["moments"]["counts"]
    serving = sum(actor["serving"] for actor in live["actors"])
    grid.add_row(
        "rollout",
        f"{serving} of {len(live['actors'])} actors serve   {live['in_flight']} of {live['slots']} groups in flight   "
        f"{live['scored']} scored   {live['restarts']} restarts",
    )
    grid.add_row(
        "moments",
        f"{counts['groups']} groups   {counts['completions']} completions   {counts['errors']} without reward   "
        f"{counts['lost']} lost   policy version {live['policy_version']}",
    )
    grid.add_row("as of", f"{duration(max(0.0, time.time() - live['written_at']))} ago")
    return grid


def _numbers(stats: dict[str, Any]) -> dict[str, Any]:
    """Moments as they are read from JSON, which has no NaN."""
    columns = stats["clusters"].items()
    return {"clusters": {name: [nan if value is None else value for value in values] for name, values in columns}}

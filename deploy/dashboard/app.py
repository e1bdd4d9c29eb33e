"""The application: what can be asked, and what is answered. Every answer comes from run directories and changes nothing."""

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from deploy.dashboard import group_view, run_view, sample_view, system
from deploy.dashboard.access import Guard
from deploy.dashboard.answers import Answers
from deploy.dashboard.clusters import ClusterViews
from deploy.dashboard.connections import LIMITS, Limits
from deploy.dashboard.events import changes, told
from deploy.dashboard.problems import add_problems, answer, problem
from deploy.dashboard.reward_view import spread
from deploy.dashboard.streams import BoundedStream, Streams
from deploy.rundir.catalog import Catalog
from deploy.rundir.evaluated import evaluated_file
from deploy.rundir.groups import Wanted
from deploy.rundir.open_run import OpenRun
from deploy.rundir.reading import stamp_of
from deploy.rundir.thinning import MOST_POINTS

STATIC = Path(__file__).parent / "static"
MOST_COMPARED = 8
PATIENCE_S = 3.0
"""How long a request waits for its turn to be worked out before it is told to come again."""

RunName = Annotated[str, Query(max_length=255)]
FileName = Annotated[str, Query(min_length=1, max_length=255)]
Step = Annotated[int, Query(ge=0, lt=2**62)]
PLACE = r"^(\d{1,18}\.){3}.+$"
GroupId = Annotated[str, Query(min_length=1, max_length=400)]


def create_app(
    runs_dir: Path, token: str | None = None, hosts: frozenset[str] = frozenset(), limits: Limits = LIMITS
) -> Guard:
    """The dashboard of a directory of runs, or of one run. Raises ConfigError where there is no directory.

    token: asked for in a header or a cookie; None for nobody.    hosts: names that it answers to; empty for any.
    """
    catalog = Catalog(runs_dir)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    answers = Answers(at_once=4, wait_s=PATIENCE_S)
    _add_runs(app, catalog, answers, Streams(limits))
    _add_moments(app, catalog, answers)
    _add_groups(app, catalog, answers)
    _add_samples(app, catalog, answers)
    add_problems(app)
    return Guard(app, token, hosts, limits.body_s)


def _add_runs(app: FastAPI, catalog: Catalog, answers: Answers, streams: Streams) -> None:
    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/api/runs")
    def runs() -> Response:
        # Files of every run are looked at: once a second, however many ask.
        now = int(time.monotonic())
        return _json(answers.get("runs", now, lambda: {"directory": catalog.directory.name, "runs": catalog.rows()}))

    @app.get("/api/run")
    def run(name: RunName) -> Response:
        return _json(told(_opened(catalog, name), answers))

    @app.get("/api/series")
    def series(
        name: RunName,
        series: Annotated[list[str], Query(max_length=200)],
        first: Step = 0,
        last: Step = 2**62 - 1,
        points: Annotated[int, Query(ge=2, le=MOST_POINTS)] = MOST_POINTS,
    ) -> Response:
        run = _opened(catalog, name)
        key = ("series", name, *series, first, last, points)
        return _json(answers.get(key, run.metrics.version, lambda: run.metrics.series(series, first, last, points)))

    @app.get("/api/compare")
    def compare(
        name: Annotated[list[str], Query(min_length=1, max_length=MOST_COMPARED)],
        series: Annotated[list[str], Query(max_length=50)],
        first: Step = 0,
        last: Step = 2**62 - 1,
    ) -> Response:
        opened = [_opened(catalog, one) for one in dict.fromkeys(name)]
        statuses = [one.status() for one in opened]

        def work() -> list[dict[str, Any]]:
            return [
                {"run": status} | one.metrics.series(series, first, last)
                for one, status in zip(opened, statuses, strict=True)
            ]

        stamp = [
            (one.metrics.version, status["state"], status["eta_s"])
            for one, status in zip(opened, statuses, strict=True)
        ]
        return _json(answers.get(("compare", *name, *series, first, last), tuple(stamp), work))

    @app.get("/api/evaluated")
    def evaluated(name: RunName) -> Response:
        run = catalog.open(name)
        key, stamp = ("evaluated", name), stamp_of(run.directory.evaluated)
        return _json(answers.get(key, stamp, lambda: run_view.evaluated(run)))

    @app.get("/api/evaluated/file")
    def evaluated_json(name: RunName, file: FileName) -> FileResponse:
        path = evaluated_file(catalog.open(name).directory, file, ".json")
        return FileResponse(path, media_type="application/json")

    @app.get("/evaluated/picture")
    def evaluated_picture(name: RunName, file: FileName) -> FileResponse:
        path = evaluated_file(catalog.open(name).directory, file, ".png")
        return FileResponse(path, media_type="image/png")

    @app.get("/api/system")
    def the_system(name: RunName) -> Response:
        return answer(system.overview(_opened(catalog, name)))

    @app.get("/api/events")
    async def events(name: RunName) -> BoundedStream:
        return BoundedStream(streams, changes(await asyncio.to_thread(catalog.open, name), answers))


def _add_moments(app: FastAPI, catalog: Catalog, answers: Answers) -> None:
    views = ClusterViews()

    @app.get("/api/clusters")
    def clusters(name: RunName) -> Response:
        run = catalog.open(name)
        return _json(answers.get(("clusters", name), run.moments_stamp, lambda: views.overview(run)))

    @app.get("/api/rewards")
    def rewards(name: RunName) -> Response:
        run = catalog.open(name)
        return _json(answers.get(("rewards", name), run.moments_stamp, lambda: spread(run)))

    @app.get("/api/cluster")
    def cluster(name: RunName, cluster: Annotated[int, Query(ge=0, lt=2**31)]) -> Response:
        run = catalog.open(name)
        return _json(answers.get(("cluster", name, cluster), run.moments_stamp, lambda: views.detail(run, cluster)))


def _add_groups(app: FastAPI, catalog: Catalog, answers: Answers) -> None:
    # Each one folds the history of a whole run: side by side they would only take each other's memory and time.
    histories = Answers(at_once=1, wait_s=PATIENCE_S)

    @app.get("/api/groups")
    def groups(
        name: RunName,
        id: Annotated[str, Query(max_length=400)] = "",
        cluster: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
        step: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
        source: Annotated[str, Query(max_length=400)] = "",
        outcome: Annotated[str, Query(max_length=20)] = "",
        before: Annotated[str | None, Query(max_length=500, pattern=PLACE)] = None,
    ) -> Response:
        if outcome and outcome not in group_view.outcome_names():
            return problem(422, f"outcome: {outcome!r}; there are {', '.join(group_view.outcome_names())}")
        wanted = Wanted(id.strip(), cluster, step, source, outcome)
        run = catalog.open(name)
        key = ("groups", name, wanted, before)
        return _json(answers.get(key, run.moments_stamp, lambda: group_view.search(run, wanted, before)))

    @app.get("/api/group")
    def group(name: RunName, id: GroupId, incarnation: Annotated[int | None, Query(ge=0, lt=2**31)] = None) -> Response:
        return answer(group_view.detail(catalog.open(name), id, incarnation))

    @app.get("/api/group/text")
    def text(
        name: RunName,
        id: GroupId,
        completion: Annotated[int, Query(ge=-1, lt=2**31)],
        offset: Annotated[int, Query(ge=0, lt=2**40)] = 0,
        incarnation: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
    ) -> Response:
        return answer(group_view.more_text(catalog.open(name), id, incarnation, completion, offset))

    @app.get("/api/group/recomputed")
    def recomputed(
        name: RunName,
        id: GroupId,
        incarnation: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
        patient: bool = False,
    ) -> Response:
        run = catalog.open(name)
        row = group_view.find(run, id, incarnation)
        # What was folded stays as it is, whatever the run goes on to.
        stamp = (run.config_stamp, row.incarnation, row.step, run.ledger_stamp)
        key = (name, id, incarnation, patient)
        return _json(histories.get(key, stamp, lambda: group_view.recomputed(run, row, patient)))


def _add_samples(app: FastAPI, catalog: Catalog, answers: Answers) -> None:
    @app.get("/api/samples")
    def samples(
        name: RunName,
        id: Annotated[str, Query(max_length=400)] = "",
        cluster: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
        step: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
        source: Annotated[str, Query(max_length=400)] = "",
        text: Annotated[str, Query(max_length=400)] = "",
        low: Annotated[float | None, Query(allow_inf_nan=False)] = None,
        high: Annotated[float | None, Query(allow_inf_nan=False)] = None,
        shortest: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
        longest: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
        state: Annotated[str, Query(pattern="^(failed|judged|cut|valued|)$")] = "",
        before: Annotated[str | None, Query(max_length=500, pattern=PLACE)] = None,
    ) -> Response:
        groups = Wanted(id.strip(), cluster, step, source)
        wanted = sample_view.wanted_samples(groups, text, (low, high), (shortest, longest), state)
        run = catalog.open(name)
        key = ("samples", name, wanted, before, state)
        stamp = (run.moments_stamp, run.tokens_stamp)
        return _json(answers.get(key, stamp, lambda: sample_view.search(run, wanted, before, state == "valued")))

    @app.get("/api/samples/tokens")
    def tokens(name: RunName, id: GroupId, step: Step, incarnation: Annotated[int, Query(ge=0, lt=2**31)]) -> Response:
        return answer(sample_view.token_values(catalog.open(name), id, step, incarnation))

    @app.get("/api/samples/prompt")
    def prompt(
        name: RunName,
        prompt: Annotated[str, Query(min_length=1, max_length=200)],
        step: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
    ) -> Response:
        return answer(sample_view.of_prompt(catalog.open(name), prompt, step))


def _opened(catalog: Catalog, name: str) -> OpenRun:
    """The run, with what is new in its files."""
    run = catalog.open(name)
    run.freshen()
    return run


def _json(encoded: bytes) -> Response:
    return Response(encoded, media_type="application/json")

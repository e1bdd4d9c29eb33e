"""The application: what can be asked, and what is answered. Every answer comes from run directories and changes nothing."""

import sqlite3
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from sse_starlette import EventSourceResponse
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from deploy.config.recipe import ConfigError
from deploy.dashboard import group_view, system
from deploy.dashboard.access import Guard
from deploy.dashboard.clusters import ClusterUnknownError, ClusterViews
from deploy.dashboard.events import changes
from deploy.dashboard.group_view import GroupUnknownError
from deploy.dashboard.run_view import overview
from deploy.rundir.catalog import Catalog, NoRunError
from deploy.rundir.groups_index import Wanted
from deploy.rundir.ledger_rows import OldLedgerError
from deploy.rundir.open_run import NoLedgerError, OpenRun
from deploy.rundir.thinning import MOST_POINTS
from moments_service.ledger import LedgerDamagedError

STATIC = Path(__file__).parent / "static"
MOST_COMPARED = 8

RunName = Annotated[str, Query(max_length=255)]
Step = Annotated[int, Query(ge=0, lt=2**62)]
GroupId = Annotated[str, Query(min_length=1, max_length=400)]


def create_app(runs_dir: Path, token: str | None = None, hosts: frozenset[str] = frozenset()) -> Guard:
    """The dashboard of a directory of runs, or of one run. Raises ConfigError where there is no directory.

    token: asked for in a header or a cookie; None for nobody.    hosts: names that it answers to; empty for any.
    """
    catalog = Catalog(runs_dir)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    _add_runs(app, catalog)
    _add_moments(app, catalog)
    _add_groups(app, catalog)
    _add_problems(app)
    return Guard(app, token, hosts)


def answer(content: Any, status: int = 200) -> Response:
    """A JSON answer; NaN becomes null."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def _add_runs(app: FastAPI, catalog: Catalog) -> None:
    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/api/runs")
    def runs() -> Response:
        return answer({"directory": catalog.directory.name, "runs": catalog.rows()})

    @app.get("/api/run")
    def run(name: RunName) -> Response:
        return answer(overview(_opened(catalog, name)))

    @app.get("/api/series")
    def series(
        name: RunName,
        series: Annotated[list[str], Query(max_length=200)],
        first: Step = 0,
        last: Step = 2**62 - 1,
        points: Annotated[int, Query(ge=2, le=MOST_POINTS)] = MOST_POINTS,
    ) -> Response:
        return answer(_opened(catalog, name).metrics.series(series, first, last, points))

    @app.get("/api/compare")
    def compare(
        name: Annotated[list[str], Query(min_length=1, max_length=MOST_COMPARED)],
        series: Annotated[list[str], Query(max_length=50)],
        first: Step = 0,
        last: Step = 2**62 - 1,
    ) -> Response:
        opened = [_opened(catalog, one) for one in dict.fromkeys(name)]
        return answer([{"run": one.status()} | one.metrics.series(series, first, last) for one in opened])

    @app.get("/api/system")
    def the_system(name: RunName) -> Response:
        return answer(system.overview(_opened(catalog, name)))

    @app.get("/api/events")
    async def events(name: RunName) -> EventSourceResponse:
        return EventSourceResponse(changes(catalog.open(name)))


def _add_moments(app: FastAPI, catalog: Catalog) -> None:
    views = ClusterViews()

    @app.get("/api/clusters")
    def clusters(name: RunName) -> Response:
        return answer(views.overview(_with_groups(catalog, name)))

    @app.get("/api/cluster")
    def cluster(name: RunName, cluster: Annotated[int, Query(ge=0, lt=2**31)]) -> Response:
        return answer(views.detail(_with_groups(catalog, name), cluster))


def _add_groups(app: FastAPI, catalog: Catalog) -> None:
    @app.get("/api/groups")
    def groups(
        name: RunName,
        id: Annotated[str, Query(max_length=400)] = "",
        cluster: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
        step: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
        source: Annotated[str, Query(max_length=400)] = "",
        outcome: Annotated[str, Query(max_length=20)] = "",
        before: Annotated[str | None, Query(max_length=80, pattern=r"^\d{1,9}\.\d{1,18}\.\d{1,9}$")] = None,
    ) -> Response:
        if outcome and outcome not in group_view.outcome_names():
            return _problem(422, f"outcome: {outcome!r}; there are {', '.join(group_view.outcome_names())}")
        run = _opened(catalog, name, groups=True)
        found = group_view.search(run, Wanted(id.strip(), cluster, step, source, outcome), before)
        return answer(found | {"sources": run.groups().sources(), "outcomes": group_view.outcome_names()})

    @app.get("/api/group")
    def group(name: RunName, id: GroupId, incarnation: Annotated[int | None, Query(ge=0, lt=2**31)] = None) -> Response:
        return answer(group_view.detail(_opened(catalog, name, groups=True), id, incarnation))

    @app.get("/api/group/text")
    def text(
        name: RunName,
        id: GroupId,
        completion: Annotated[int, Query(ge=-1, lt=2**31)],
        offset: Annotated[int, Query(ge=0, lt=2**40)] = 0,
        incarnation: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
    ) -> Response:
        run = _opened(catalog, name, groups=True)
        return answer(group_view.more_text(run, id, incarnation, completion, offset))

    @app.get("/api/group/recomputed")
    def recomputed(
        name: RunName,
        id: GroupId,
        incarnation: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
        patient: bool = False,
    ) -> Response:
        return answer(group_view.recomputed(_opened(catalog, name, groups=True), id, incarnation, patient))


def _add_problems(app: FastAPI) -> None:
    """Errors that have a name get a status and one sentence; any other is a bug and stays a 500."""

    statuses: dict[type[Exception], int] = {
        NoRunError: 404,
        NoLedgerError: 404,
        GroupUnknownError: 404,
        ClusterUnknownError: 404,
        OldLedgerError: 409,
        ConfigError: 409,
        LedgerDamagedError: 409,
        sqlite3.OperationalError: 409,
        sqlite3.DatabaseError: 409,
    }

    def problem(_: Request, error: Exception) -> Response:
        what = f"the ledger cannot be read: {error}" if isinstance(error, sqlite3.Error) else str(error)
        return _problem(statuses[type(error)], what)

    for kind in statuses:
        app.add_exception_handler(kind, problem)

    @app.exception_handler(RequestValidationError)
    def refused(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _problem(422, f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}")


def _opened(catalog: Catalog, name: str, groups: bool = False) -> OpenRun:
    """The run, with what is new in its files. groups: of its ledger too. Raises NoLedgerError or OldLedgerError for that."""
    run = catalog.open(name)
    if groups:
        run.groups()
    run.freshen()
    return run


def _with_groups(catalog: Catalog, name: str) -> OpenRun:
    """The run, with what is new in its files and its ledger, if it has one that can be read."""
    try:
        return _opened(catalog, name, groups=True)
    except (NoLedgerError, OldLedgerError):
        return _opened(catalog, name)


def _problem(status: int, sentence: str) -> Response:
    return answer({"problem": sentence}, status)

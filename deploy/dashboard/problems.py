"""Answers, and what goes wrong with them: a status and one sentence; any other error is a bug and stays a 500."""

import sqlite3
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from deploy.config.recipe import ConfigError
from deploy.dashboard.answers import BusyError
from deploy.dashboard.clusters import ClusterUnknownError
from deploy.dashboard.connections import RETRY_AFTER_S
from deploy.dashboard.group_view import GroupUnknownError
from deploy.report.visible import visible
from deploy.rundir.catalog import NoRunError
from deploy.rundir.evaluated import NoEvaluationError
from deploy.rundir.groups import QUERY_S
from deploy.rundir.open_run import NoLedgerError
from moments_service.durable import DamagedFileError
from moments_service.ledger import LedgerDamagedError

STATUSES: dict[type[Exception], int] = {
    NoRunError: 404,
    NoLedgerError: 404,
    NoEvaluationError: 404,
    GroupUnknownError: 404,
    ClusterUnknownError: 404,
    ConfigError: 409,
    DamagedFileError: 409,
    LedgerDamagedError: 409,
    sqlite3.OperationalError: 409,
    sqlite3.DatabaseError: 409,
    BusyError: 503,
}


def answer(content: Any, status: int = 200) -> Response:
    """A JSON answer; NaN becomes null."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def problem(status: int, sentence: str) -> Response:
    """What the page shows instead."""
    response = answer({"problem": visible(sentence)}, status)
    if status == 503:
        response.headers["retry-after"] = str(RETRY_AFTER_S)
    return response


def busy(sentence: str) -> Response:
    """Not now."""
    return problem(503, sentence)


def add_problems(app: FastAPI) -> None:
    """Turn errors that have a name into answers."""

    def told(_: Request, error: Exception) -> Response:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
            return problem(409, f"the ledger does not answer that in {QUERY_S:g} s")
        what = f"the ledger cannot be read: {error}" if isinstance(error, sqlite3.Error) else str(error)
        return problem(STATUSES[type(error)], what)

    for kind in STATUSES:
        app.add_exception_handler(kind, told)

    @app.exception_handler(RequestValidationError)
    def refused(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return problem(422, f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}")

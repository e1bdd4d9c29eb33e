"""What a page is told while it follows a run: that there is more, and the head of it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from sse_starlette import ServerSentEvent

from deploy.dashboard.answers import Answers, BusyError
from deploy.dashboard.run_view import overview
from deploy.rundir.open_run import OpenRun

POLL_S = 1.5
"""How often files are looked at: nothing tells a reader that a file grew. A page that is told of every step of a quick run would
cost it more than the hundredth that watching may take."""
_BUDGET_S = 0.25
"""What is read at a time of a run that is long already, between two events."""
_STATUS_EVERY_S = 10.0
"""How often the head is sent where nothing changed: a run can end without a word."""


def told(run: OpenRun, answers: Answers) -> bytes:
    """What `run_view.overview` says, worked out once for all who follow the run. Raises BusyError."""
    stamp = (run.version, run.state(), run.problem)
    return answers.get(("run", run.name), stamp, lambda: overview(run))


async def changes(run: OpenRun, answers: Answers) -> AsyncIterator[ServerSentEvent]:
    """Consumes: the run's files. Waits for: them to grow. Ends: when the page goes or the server stops (cancelled).

    Each event is what `run_view.overview` says; one that the server has no time for comes with the next change.
    """
    run.followers += 1
    try:
        seen: object = None
        sent = 0.0
        while True:
            done = await asyncio.to_thread(run.catch_up, _BUDGET_S)
            now = time.monotonic()
            if run.version != seen or now - sent > _STATUS_EVERY_S:
                seen, sent = run.version, now
                with contextlib.suppress(BusyError):
                    status = await asyncio.to_thread(told, run, answers)
                    yield ServerSentEvent(status.decode(), event="status")
            if done:
                await asyncio.sleep(POLL_S)
            else:
                await asyncio.sleep(0)
    finally:
        run.followers -= 1

"""One answer to what became of a run, in the list, in the terminal and in the page, from the moment on that it is true."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from deploy.dashboard.app import create_app
from deploy.report.runs import runs_table
from deploy.report.terminal import Terminal
from deploy.report.top import COLORS, watch
from deploy.rundir.catalog import Catalog
from deploy.rundir.layout import RunDirectory
from deploy.rundir.owner import RunOwner
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

OWNER = """
import sys
from pathlib import Path
from deploy.rundir.owner import RunOwner
with RunOwner.acquire(Path(sys.argv[1])):
    print("owned", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.create(tmp_path, "run", "steps: 5\n")
    run.append_metrics({"step": 0, "seconds": 1.0})
    return run


@contextmanager
def owned(run: RunDirectory) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that runs the run; ends in order with the block, if it still lives."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, run.path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == b"owned\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


def state(run: RunDirectory) -> str:
    """What all three say; they have to say the same."""
    (row,) = Catalog(run.path.parent).rows()
    listed, drawn = (Terminal(file=StringIO(), width=150) for _ in range(2))
    listed.print(runs_table([row]))
    watch(run, drawn, once=True)
    with TestClient(create_app(run.path.parent)) as client:
        (in_page,) = client.get("/api/runs").json()["runs"]
        head = client.get("/api/run", params={"name": run.path.name}).json()
    assert isinstance(listed.file, StringIO) and isinstance(drawn.file, StringIO)
    found: str = row["state"]
    assert in_page["state"] == head["state"] == found and found in COLORS
    assert found in listed.file.getvalue() and found in drawn.file.getvalue()
    return found


def test_a_run_that_was_killed_is_killed_at_once(run: RunDirectory) -> None:
    with owned(run) as process:
        assert state(run) == "running"
        run.paused.write_text("reward fell")
        assert state(run) == "paused"
        run.paused.unlink()
        process.kill()
        process.wait(20)
        assert state(run) == "killed"
    with owned(run):
        assert state(run) == "running"


def test_a_run_that_ended_in_order_says_how(run: RunDirectory) -> None:
    with owned(run):
        pass
    assert state(run) == "stopped", "nobody runs it, and it was not killed"
    for ending in ("failed", "stopped"):
        with owned(run):
            run.end_early(ending, "why")  # type: ignore[arg-type]
        assert state(run) == ending
    with owned(run):
        run.summary.write_text("{}")
    assert state(run) == "done"


def test_what_an_earlier_start_left_says_nothing_of_the_last_one(run: RunDirectory) -> None:
    with owned(run):
        run.summary.write_text("{}")
    with owned(run) as process:
        assert state(run) == "running", "resumed for more steps"
        process.kill()
    assert state(run) == "killed"
    with owned(run) as process:
        run.end_early("failed", "why")
        process.kill()
    assert state(run) == "failed", "killed when it had said how it ended"


def test_an_owner_elsewhere_that_gives_no_sign_of_life_is_dead(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunOwner.acquire(run.path):
        monkeypatch.setattr("deploy.rundir.owner._place", lambda: "another machine")
        assert state(run) == "running"
        os.utime(run.path / "owner.json", (time.time() - 60,) * 2)
        assert state(run) == "killed"

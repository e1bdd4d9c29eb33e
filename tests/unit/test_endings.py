"""The last words of a command: what a person reads, the exit code, and what is kept; with real processes, files and full disks."""

import asyncio
import gc
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from actors.deadline import LateError, within
from deploy.cli import ending
from deploy.cluster.environment import EnvironmentProblemError
from deploy.config.recipe import ConfigError
from deploy.run import signals
from deploy.run.clock import PhaseError
from deploy.run.errors import StoppedByHandError, in_a_sentence
from deploy.run.ray_watch import RayDiedError, watched
from deploy.run.stopping import as_asked
from deploy.rundir.layout import RunDirectory
from tests.conftest import ROOT

pytestmark = pytest.mark.unit


async def test_a_deadline_claims_its_own_lateness_alone() -> None:
    async def own() -> None:
        raise TimeoutError("of its own")

    async def own_when_cancelled() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise TimeoutError("the true cause") from None

    async def done_when_cancelled() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done after all"
        raise AssertionError

    with pytest.raises(TimeoutError, match="of its own") as caught:
        await within(10.0, own(), lambda: "late")
    assert not isinstance(caught.value, LateError)
    with pytest.raises(LateError, match="late") as late:
        await within(0.01, own_when_cancelled(), lambda: "late")
    assert str(late.value.__cause__) == "the true cause"
    assert await within(0.01, done_when_cancelled(), lambda: "late") == "done after all"


async def test_what_is_waited_for_ends_with_who_waited() -> None:
    ended = asyncio.Event()
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
            raise ValueError("nobody hears of it")

    waiting = asyncio.create_task(within(60.0, endless(), lambda: "late"))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
    del waiting
    gc.collect()
    assert complaints == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PhaseError("step 3, phase learn: it broke"), "step 3, phase learn: it broke"),
        (KeyError("x"), "KeyError: 'x'"),
        (TimeoutError(), "TimeoutError"),
        (ActorDiedError(), "ActorDiedError: The actor died unexpectedly before finishing this task."),
        (RayTaskError("f", "ray::f()\n  File x\nValueError: bad", ValueError("two\nlines"), "f", 1, "ip"), "ValueError: two lines"),
        (ValueError("x" * 5000), "ValueError: " + "x" * 600 + " …"),
    ],
)  # fmt: skip
def test_any_error_is_one_line(error: BaseException, words: str) -> None:
    assert in_a_sentence(error) == words


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a"), 2),
        (EnvironmentProblemError("a"), 3),
        (RayDiedError("a"), 4),
        (ValueError("a"), 4),
        (StoppedByHandError("a"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert ending.exit_code(error) == code


def test_an_end_that_was_asked_for_stays_one_whatever_breaks_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died, by_hand = RayDiedError("Ray's GCS died"), StoppedByHandError("stopped after 3 steps")
    monkeypatch.setattr(signals, "asked", threading.Event())
    assert as_asked(died, tmp_path) is died and as_asked(by_hand, tmp_path) is by_hand
    signals.asked.set()
    assert as_asked(by_hand, tmp_path) is by_hand
    told = as_asked(died, tmp_path)
    assert ending.exit_code(told) == 130 and told.__cause__ is died
    assert "no checkpoint was written then (Ray's GCS died); go on with --resume" in str(told)


@pytest.mark.parametrize("how", ["terminal", "pipe"])
def test_output_that_nobody_reads_any_more_ends_nothing(tmp_path: Path, how: str) -> None:
    ours, theirs = pty.openpty() if how == "terminal" else os.pipe()
    script = f"""
import sys
from pathlib import Path
from deploy.cli.lasting_output import outlast_readers
outlast_readers()
print("heard")
sys.stdin.read()
for stream in (sys.stdout, sys.stderr):
    print("told nobody", file=stream, flush=True)
Path({str(tmp_path / "done")!r}).touch()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        start_new_session=True,
    )
    os.close(theirs)
    assert os.read(ours, 5) == b"heard"
    os.close(ours)
    process.communicate(timeout=60)
    assert process.returncode == 0 and (tmp_path / "done").exists()


def test_what_nohup_ignores_stays_ignored_and_a_signal_and_its_echo_are_one(tmp_path: Path) -> None:
    script = """
import os, signal
from deploy.run import signals
signals.on_request(lambda: print("asked", flush=True))
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
    os.kill(os.getpid(), number)
print(signals.asked.is_set())
"""
    done = subprocess.run(
        ["nohup", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout.splitlines() == ["asked", "True"]


def test_a_new_start_forgets_how_the_one_before_it_ended(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    ending.keep(run, ValueError("the first"))
    assert "the first" in run.error.read_text() and '"failed"' in run.ending.read_text()
    run.begin()
    assert not run.error.exists() and not run.ending.exists()
    ending.keep(run, StoppedByHandError("the second"))
    assert "the first" not in run.error.read_text() and '"stopped"' in run.ending.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a file system")
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_the_reason_of_an_end_outlives_a_disk_that_takes_nothing(tmp_path: Path, how: str) -> None:
    """In a mount namespace of its own, which ends with the process."""
    script = f"""
import subprocess, sys
from pathlib import Path
from deploy.cli import ending
from deploy.rundir.layout import RunDirectory
place = Path({str(tmp_path)!r})
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)], check=True)
if {how!r} == "full":
    try:
        (place / "filler").write_bytes(bytes(10**6))
    except OSError:
        pass
else:
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
error = ValueError("the true reason")
ending.say(error)
ending.keep(RunDirectory(place), error)
"""
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if "Operation not permitted" in done.stderr or "permission denied" in done.stderr:
        pytest.skip("no mounts in this container")
    first, second = done.stderr.splitlines()
    assert done.returncode == 0 and first == "ValueError: the true reason"
    why = {"full": "No space left on device", "read-only": "Read-only file system"}[how]
    assert second == f"{tmp_path / 'error.txt'} could not be written: {why}"


def test_the_end_of_a_process_of_ray_is_noticed_at_once() -> None:
    died: list[RayDiedError] = []
    others = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    try:
        with watched({others[0].pid: "raylet", others[1].pid: "GCS"}, died.append):
            others[1].kill()
            deadline = time.monotonic() + 10
            while not died and time.monotonic() < deadline:
                time.sleep(0.01)
        assert [str(error) for error in died] == [
            f"Ray's GCS (process {others[1].pid}) died, and with it every part of the run"
        ]
        with watched({others[0].pid: "raylet"}, died.append):
            pass
        assert len(died) == 1  # an orderly end is none
    finally:
        for other in others:
            other.kill()
            other.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_before_anything_runs_is_one_sentence(tmp_path: Path, number: int) -> None:
    """The recipe is a pipe that nobody fills: the command stands in the middle of reading it."""
    os.mkfifo(recipe := tmp_path / "recipe.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", "train", recipe],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    writer = None
    try:
        deadline = time.monotonic() + 60
        while writer is None:
            assert process.poll() is None and time.monotonic() < deadline
            try:
                writer = os.open(recipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # nobody reads yet
                time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        if writer is not None:
            os.close(writer)
    assert (process.returncode, output) == (130, "stopped by hand\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_while_commands_are_still_imported_is_the_same_sentence(tmp_path: Path, number: int) -> None:
    """One of the first modules that is imported says so, and then waits."""
    (tmp_path / "typer.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", "train"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "importing\n"
        process.send_signal(number)
        told = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, *told) == (130, "", "stopped by hand\n")


@pytest.mark.parametrize("arguments", [("replay", "log.jsonl"), ("runs", "--help")])
def test_a_command_is_done_once_nobody_reads_its_output(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "group": "g", "cluster": 0, "rewards": [1, 0]}\n')
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(theirs)
    assert done.returncode == 0 and "Broken pipe" not in done.stderr, done.stderr


_REPORTS_AT_ITS_END = """
import sys
class Library:
    def __del__(self):
        print("leaked 3 instances", file=sys.stderr)
kept = Library()
"""
"""What some libraries do when Python takes a process apart; `kept` lives until then."""


@pytest.mark.parametrize(
    ("run", "code", "said"),
    [
        ("print('words' * 10000)", 0, b"words"),
        ("sys.exit(3)", 3, b""),
        ("sys.exit()", 0, b""),
        ("sys.exit('a sentence')", 1, b"a sentence"),
        ("1 / 0", 1, b"ZeroDivisionError"),
    ],
)
def test_a_command_ends_with_its_own_words(run: str, code: int, said: bytes) -> None:
    program = f"{_REPORTS_AT_ITS_END}\nfrom deploy.cli import main, start\ndef ours(): {run}\nmain.main = ours\nstart.main()\n"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, timeout=60, check=False)
    assert ended.returncode == code, ended.stderr
    assert b"leaked" not in ended.stderr
    assert said in ended.stdout + ended.stderr
    assert len(ended.stdout) == (50001 if code == 0 and said else 0)

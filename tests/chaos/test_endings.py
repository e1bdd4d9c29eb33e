"""Parts of a run die or hang, or somebody presses Ctrl-C: what the last lines say, the exit code, and that nothing is left."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.run.signals import ECHO_S
from deploy.rundir.layout import RunDirectory
from tests.conftest import ROOT, Command, brief_evaluations, settings

pytestmark = pytest.mark.chaos

COLD_START = ROOT / "deploy" / "recipes" / "cold_start.yaml"
START_S = 300.0
STOPPED = "; go on with --resume"


SMALL = {
    "rollout__engine": "transformers",
    "rollout__cpus": 0.5,
    "learner__cpus": 0.5,
    "batch_groups": 4,
    "group_size": 2,
    "checkpoint__every": 2,
    "steps": 1000,
}
TAKES_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


def small_run(bvblend: Callable[..., Command], runs: Path, **changes: object) -> Command:
    return bvblend("train", COLD_START, *brief_evaluations(), *settings(**SMALL | {"runs_dir": runs} | changes))


def process_of(command: Command, name: str) -> int:
    return next(pid for pid, line in command.alive().items() if name in line)


def last_lines(command: Command, code: int) -> list[str]:
    """What a person reads at the end of a run that ended by itself, with nothing left of it."""
    assert command.wait(90) == code, command.output()
    command.wait_until_nothing_is_left(30)
    output = command.output()
    for noise in ("Traceback", "never retrieved", "state-dump", "ray::", "(raylet)"):
        assert noise not in output, output
    return output.splitlines()[-10:]


@pytest.mark.parametrize(
    ("victim", "words"),
    [
        ("raylet/raylet", "Ray's raylet (process PID) died, and with it every part of the run"),
        pytest.param("gcs_server", "Ray's GCS (process PID) died, and with it every part of the run", marks=pytest.mark.long),
        pytest.param("MomentsActor", "the moments service died before it answered", marks=pytest.mark.long),
        pytest.param("LearnerActor", "learner rank 0 died while", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_the_death_of_a_part_that_cannot_be_replaced_is_one_sentence(
    bvblend: Callable[..., Command], tmp_path: Path, victim: str, words: str
) -> None:
    command = small_run(bvblend, tmp_path)
    command.wait_for("step    2/", START_S)
    pid = process_of(command, victim)
    os.kill(pid, signal.SIGKILL)
    *before, last = last_lines(command, 4)
    # A learner may die over a checkpoint: that this one is lost is said besides.
    assert words.replace("PID", str(pid)) in last, (before, last)
    assert before[-1].startswith(("step ", "the checkpoint of step ")), (before, last)
    run = RunDirectory(tmp_path / "latest")
    assert last.partition(": ")[2] in run.error.read_text() and "failed" in run.ending.read_text()


@pytest.mark.long
def test_a_rollout_actor_that_hangs_is_a_death_with_a_deadline_that_is_named(
    bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    command = small_run(bvblend, tmp_path, rollout__actors=2, rollout__update_timeout_s=8, rollout__group_timeout_s=6)
    command.wait_for("step    2/", START_S)
    os.kill(process_of(command, "RolloutActor"), signal.SIGSTOP)
    command.wait_for("does not answer in 8 s (rollout.update_timeout_s)", 60)
    command.wait_for("going on with 1 of 2", 10)
    steps = command.output().count("\nstep ")
    command.wait_for("\nstep ", 60, times=steps + 2)
    command.wait_for("serves again", START_S)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("reached", "words"),
    [
        ("starting the engine", "stopped (before|after 0 steps)"),
        ("learner ranks on", "stopped (before|after 0 steps)"),
        ("evaluating the starting policy", "stopped after 0 steps"),
        ("step    1/", "stopped after"),
    ],
)
def test_ctrl_c_ends_each_phase_in_one_sentence(
    bvblend: Callable[..., Command], tmp_path: Path, number: signal.Signals, reached: str, words: str
) -> None:
    command = small_run(bvblend, tmp_path)
    command.wait_for(reached, START_S)
    command.process.send_signal(number)
    *_, last = last_lines(command, 130)
    assert re.search(words, last) and STOPPED in last, last


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_process_group_ends_a_run_as_one_to_the_driver(
    bvblend: Callable[..., Command], tmp_path: Path, number: signal.Signals
) -> None:
    command = small_run(bvblend, tmp_path, checkpoint__every=0)
    command.wait_for("step    2/", START_S)
    command.signal_group(number)
    *_, last = last_lines(command, 130)
    run = RunDirectory(tmp_path / "latest")
    (step,) = run.checkpoint_steps()
    assert f"stopped after {step} steps{STOPPED}" in last and step == len(run.read_metrics()), last


@pytest.mark.long
def test_a_terminal_that_goes_away_leaves_a_checkpoint(tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    small = settings(**SMALL | {"checkpoint__every": 0, "runs_dir": tmp_path})
    arguments = ["train", COLD_START, *brief_evaluations(), *small]
    process = subprocess.Popen(
        [sys.executable, "-c", TAKES_TERMINAL, *(sys.executable, "-m", "deploy.cli"), *map(str, arguments)],
        **{"stdin": end, "stdout": end, "stderr": end, "cwd": ROOT, "start_new_session": True},
    )
    os.close(end)
    try:
        seen = b""
        while b"step 2 of" not in seen:
            try:
                seen += os.read(terminal, 2**16)
            except OSError:  # nobody holds the other end any more
                pytest.fail(f"it ended by itself, with {process.wait(60)}: {seen[-4000:].decode(errors='replace')}")
        os.close(terminal)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    run = RunDirectory(tmp_path / "latest")
    (step,) = run.checkpoint_steps()
    assert f"stopped after {step} steps" in run.error.read_text() and "stopped" in run.ending.read_text()


@pytest.mark.long
def test_a_signal_to_every_process_is_a_stop_too(bvblend: Callable[..., Command], tmp_path: Path) -> None:
    """As a scheduler does that knows all processes of a job, in whatever session they are."""
    command = small_run(bvblend, tmp_path)
    command.wait_for("step    3/", START_S)
    for pid in command.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    *_, last = last_lines(command, 130)
    assert "stopped" in last and STOPPED in last, last


@pytest.mark.long
def test_ctrl_c_at_the_end_leaves_a_run_that_is_done_or_one_to_go_on_with(
    bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    command = small_run(bvblend, tmp_path, steps=3)
    command.wait_for("writing the final policy", START_S)
    command.process.send_signal(signal.SIGINT)
    code = command.wait(60)
    *_, last = last_lines(command, code)
    done = (tmp_path / "latest" / "summary.json").exists() and "summary.json" in last
    assert (code == 0 and done) or (code == 130 and "stopped after 3 steps" in last), (code, last)


@pytest.mark.long
def test_ctrl_c_before_ray_has_started_is_one_sentence(bvblend: Callable[..., Command], tmp_path: Path) -> None:
    command = small_run(bvblend, tmp_path)
    while not any("gcs_server" in line for line in command.alive().values()):
        assert command.process.poll() is None
    command.process.send_signal(signal.SIGINT)
    *_, last = last_lines(command, 130)
    assert "stopped before the run began; begin it with --resume" in last


@pytest.mark.long
def test_ctrl_c_twice_drops_what_is_under_way(bvblend: Callable[..., Command], tmp_path: Path) -> None:
    command = small_run(bvblend, tmp_path)
    command.wait_for("step    2/", START_S)
    command.process.send_signal(signal.SIGINT)
    time.sleep(ECHO_S)  # what comes sooner is no other request
    command.process.send_signal(signal.SIGINT)
    *_, last = last_lines(command, 130)
    assert "stopped" in last and STOPPED in last, last

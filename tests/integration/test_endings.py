"""How a run ends when it does not end by itself: nothing is left behind, and what is on the disk is whole."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.rundir.layout import RunDirectory
from tests.conftest import ROOT, Command, settings

COLD_START = ROOT / "deploy" / "recipes" / "cold_start.yaml"
START_S = 300.0
LONG = settings(steps=1000, evaluation__train_prompts=8, checkpoint__every=0)


@pytest.mark.integration
def test_ctrl_c_ends_in_ten_seconds_with_a_checkpoint_to_go_on_from(
    bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    command = bvblend("train", COLD_START, *LONG, *settings(runs_dir=tmp_path))
    command.wait_for("step    3/", START_S)
    asked = time.monotonic()
    command.process.send_signal(signal.SIGINT)
    assert command.wait(10) == 130, command.output()
    assert time.monotonic() - asked < 10
    command.wait_until_nothing_is_left(10)
    run = RunDirectory(tmp_path / "latest")
    (step,) = run.checkpoint_steps()
    assert step >= 3 and f"--resume {run.path}" in command.output()

    resumed = bvblend("train", "--resume", run.path, *settings(steps=step + 2))
    assert resumed.wait(START_S) == 0, resumed.output()
    assert [row["step"] for row in run.read_metrics()] == list(range(step + 2))


@pytest.mark.chaos
def test_a_killed_driver_leaves_no_process_behind(bvblend: Callable[..., Command], tmp_path: Path) -> None:
    command = bvblend("train", COLD_START, *LONG, *settings(runs_dir=tmp_path))
    command.wait_for("step    2/", START_S)
    assert len(command.alive()) > 5
    command.process.kill()
    command.wait(10)
    command.wait_until_nothing_is_left(60)


@pytest.mark.chaos
def test_a_killed_rollout_actor_comes_back_and_its_prompts_are_sampled_again(
    bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    command = bvblend(
        "train", COLD_START, *settings(runs_dir=tmp_path, steps=12, evaluation__train_prompts=8, checkpoint__every=0)
    )
    command.wait_for("step    2/", START_S)
    actors = [pid for pid, line in command.alive().items() if "RolloutActor" in line]
    assert actors
    os.kill(actors[0], signal.SIGKILL)
    assert command.wait(START_S) == 0, command.output()
    metrics = RunDirectory(tmp_path / "latest").read_metrics()
    assert len(metrics) == 12
    assert sum(row["groups_redispatched"] for row in metrics) > 0

"""Parts of a run with vLLM are killed: a rollout actor comes back, and after the driver nothing is left."""

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.rundir.layout import RunDirectory
from tests.conftest import ROOT, Command, settings

pytestmark = pytest.mark.chaos

COLD_START = ROOT / "deploy" / "recipes" / "cold_start.yaml"
START_S = 300.0


def test_a_killed_rollout_actor_comes_back_and_a_killed_driver_leaves_nothing_behind(
    bvblend: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as rays:  # names of sockets are short
        monkeypatch.setenv("RAY_TMPDIR", rays)
        _kill(bvblend, tmp_path, Path(rays))


def _kill(bvblend: Callable[..., Command], tmp_path: Path, rays: Path) -> None:
    command = bvblend(
        "train", COLD_START, *settings(steps=1000, evaluation__train_prompts=8, checkpoint__every=0, runs_dir=tmp_path)
    )
    command.wait_for("step    2/", START_S)
    actors = [pid for pid, line in command.alive().items() if "RolloutActor" in line]
    assert actors
    os.kill(actors[0], signal.SIGKILL)
    command.wait_for("serves again", START_S)
    run = RunDirectory(tmp_path / "latest")
    # Its prompts are sampled again and trained on.
    command.wait_for(f"step {len(run.read_metrics()) + 2:4}/", START_S)
    assert sum(row["groups_redispatched"] for row in run.read_metrics()) > 0

    assert len(command.alive()) > 5 and len(list(rays.iterdir())) == 1
    command.process.kill()
    command.wait(10)
    command.wait_until_nothing_is_left(60)
    assert not list(rays.iterdir())

"""Parts of a run are killed: a rollout actor comes back, one that lost its engine in the middle of an update costs no step, and after the
driver nothing is left."""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deploy.rundir.layout import RunDirectory
from tests.conftest import ROOT, Command, brief_evaluations, settings

pytestmark = pytest.mark.chaos

COLD_START = ROOT / "deploy" / "recipes" / "cold_start.yaml"
START_S = 300.0


# That vLLM's own processes end with a killed actor is in tests/contract/test_engine.py.
@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.long)])
def test_a_killed_rollout_actor_comes_back_and_a_killed_driver_leaves_nothing_behind(
    bvblend: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as rays:  # names of sockets are short
        monkeypatch.setenv("RAY_TMPDIR", rays)
        _kill(bvblend, tmp_path, Path(rays), engine)


def _kill(bvblend: Callable[..., Command], tmp_path: Path, rays: Path, engine: str) -> None:
    short = settings(steps=1000, checkpoint__every=0, runs_dir=tmp_path, rollout__engine=engine)
    command = bvblend("train", COLD_START, *short, *brief_evaluations())
    command.wait_for("step    2/", START_S)
    run = RunDirectory(tmp_path / "latest")
    # Between two batches an actor holds no prompts; of three deaths one falls into its work.
    for deaths in range(1, 4):
        actors = [pid for pid, line in command.alive().items() if "RolloutActor" in line]
        assert actors
        os.kill(actors[0], signal.SIGKILL)
        command.wait_for("serves again", START_S, deaths)
        command.wait_for(f"step {len(run.read_metrics()) + 2:4}/", START_S)
        # Its prompts are sampled again and trained on.
        if sum(row["groups_redispatched"] for row in run.read_metrics()) > 0:
            break
    else:
        raise AssertionError(f"no prompt was sampled again after {deaths} deaths: {command.output()}")

    assert len(command.alive()) > 5 and len(list(rays.iterdir())) == 1
    command.process.kill()
    command.wait(10)
    command.wait_until_nothing_is_left(60)
    assert not list(rays.iterdir())


@pytest.mark.long
def test_a_restarted_engine_samples_with_the_newest_adapter_alone(
    bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    """Version 0 comes from the policy's files again, and every later one beside it: one that was missed would be a mismatch."""
    adapter = "{kind: lora, publish: adapter}"
    quick = {"batch_groups": 4, "group_size": 2, "checkpoint__every": 0, "steps": 12, "runs_dir": tmp_path}
    learning = settings(learner__adapter=adapter, learner__optimizer__lr=2e-2, **quick)
    command = bvblend("train", COLD_START, *learning, *brief_evaluations())
    command.wait_for("step    4/", START_S)
    (actor,) = [pid for pid, line in command.alive().items() if "RolloutActor" in line]
    os.kill(actor, signal.SIGKILL)
    assert command.wait(START_S) == 0, command.output()
    assert command.output().count("serves again") == 1
    rows = RunDirectory(tmp_path / "latest").read_metrics()
    assert [row["step"] for row in rows] == list(range(12))
    assert max(row["learner/mismatch_max"] for row in rows) < 1e-3


@pytest.mark.long
def test_an_engine_killed_while_weights_are_published_costs_no_step(
    bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    quick = {"batch_groups": 4, "group_size": 2}
    two = {"rollout__actors": 2, "rollout__cpus": 0.5, "learner__cpus": 0.5, "steps": 40, "runs_dir": tmp_path}
    command = bvblend("train", COLD_START, *brief_evaluations(), *settings(**quick, **two))
    command.wait_for("step    2/", START_S)
    actor, *others = [psutil.Process(pid) for pid, line in command.alive().items() if "RolloutActor" in line]
    assert len(others) == 1
    (engine,) = [child for child in actor.children(recursive=True) if "EngineCore" in child.name()]
    while not stopped_in_an_update(actor, engine):
        assert command.process.poll() is None, command.output()
    steps = command.output().count("\nstep ")
    engine.kill()
    assert command.wait(120) == 0, command.output()
    assert "died; going on with 1 of 2 until it is back" in command.output()
    run = RunDirectory(tmp_path / "latest")
    assert [row["step"] for row in run.read_metrics()] == list(range(40)) and steps < 40
    assert json.loads(run.summary.read_text())["steps"] == 40


def stopped_in_an_update(actor: psutil.Process, engine: psutil.Process) -> bool:
    """Stop the engine while its actor takes weights: Ray names a process after the call that it works on."""

    def taking() -> bool:
        return "RolloutActor.take" in " ".join(actor.cmdline())

    if not taking():
        return False
    engine.suspend()
    time.sleep(0.5)  # an update that the engine had done before it stopped ends meanwhile
    if not (stopped := taking()):
        engine.resume()
    return stopped

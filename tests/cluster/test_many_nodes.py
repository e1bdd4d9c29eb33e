"""A run over several Ray nodes, each with an address of its own: places, weights that cross nodes, a node that goes away."""

import json
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.rundir.layout import RunDirectory
from tests.cluster.nodes import Nodes, what_is_missing
from tests.conftest import ROOT, Command, brief_evaluations, settings

pytestmark = pytest.mark.cluster

COLD_START = ROOT / "deploy" / "recipes" / "cold_start.yaml"
START_S = 400.0
SMALL = [
    *settings(batch_groups=8, checkpoint__every=0, rollout__actors=2),
    # Both ranks on one node: only the learner's has room for that.
    *settings(
        learner__world_size=2, learner__cpus=2, learner__placement="strict_pack", learner__microbatch_tokens=1024
    ),
    *brief_evaluations(),
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head that holds the driver and no more, and a node for the learner."""
    if (missing := what_is_missing()) is not None:
        pytest.skip(missing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        started = Nodes(Path(f"/tmp/bvblend-nodes-{os.getpid()}"))  # short: Ray puts sockets below it
        try:
            started.add("head", cpus=0)
            started.add("learner", cpus=4)
            yield started
        finally:
            started.close()


Train = Callable[..., Command]


@pytest.fixture
def on_head(bvblend: Train, nodes: Nodes) -> Train:
    """The command, as a user of the head node runs it."""

    def start(*arguments: object) -> Command:
        return bvblend(*arguments, "--address", nodes.head, prefix=nodes.inside("head"))

    return start


def actors_on(nodes: Nodes, name: str) -> list[str]:
    """The parts of the run that are processes of this node."""
    lines = " ".join(nodes.processes(name).values())
    return sorted(
        kind for kind in ("LearnerActor", "RolloutActor", "MomentsActor") for _ in range(lines.count(f"ray::{kind}"))
    )


def ended(run: Command, nodes: Nodes) -> int:
    """The exit code; where there is none in time, what everybody was doing."""
    try:
        return run.wait(START_S)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{nodes.stacks()}") from None


def test_a_run_crosses_nodes_and_goes_on_when_one_is_taken_away(
    bvblend: Train, on_head: Train, nodes: Nodes, tmp_path: Path
) -> None:
    nodes.add("rollout1", cpus=1)
    nodes.add("rollout2", cpus=1)
    plan = on_head("plan", COLD_START, *SMALL)
    too_many = on_head("train", COLD_START, *SMALL, *settings(runs_dir=tmp_path, rollout__actors=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", nodes.head)
        patch.setenv("COLUMNS", "200")
        doctor = bvblend("doctor", prefix=nodes.inside("head"))
    assert plan.wait(START_S) == 0, plan.output()
    for name, holds in {"head": "driver, moments service", "learner": "2 x learner rank", "rollout1": "1 x rollout actor"}.items():  # fmt: skip
        assert any(nodes.address(name) in line and holds in line for line in plan.output().splitlines()), plan.output()
    assert too_many.wait(START_S) == 3, too_many.output()
    assert "no room for 3 x rollout actor with 1 CPU each" in too_many.output()
    assert f"{nodes.address('rollout2')}: 1 of 1 CPU free" in too_many.output()
    assert doctor.wait(START_S) == 0, doctor.output()
    assert f"{nodes.head}: 4 nodes, 6 CPUs, 0 GPUs" in doctor.output()

    run = on_head("train", COLD_START, *SMALL, *settings(rollout__engine="transformers", runs_dir=tmp_path, steps=8))
    run.wait_for("step    2/", START_S)
    assert actors_on(nodes, "head") == ["MomentsActor"]
    assert actors_on(nodes, "learner") == ["LearnerActor", "LearnerActor"]
    assert actors_on(nodes, "rollout1") == actors_on(nodes, "rollout2") == ["RolloutActor"]
    nodes.remove("rollout1")
    assert ended(run, nodes) == 0, run.output()
    assert "going on with 1 of 2" in run.output()
    directory = RunDirectory(tmp_path / "latest")
    metrics = directory.read_metrics()
    assert [row["policy_version"] for row in metrics] == list(range(1, 9))
    # Weights crossed nodes and were taken: trainer and engine agree on every token that the policy of each step sampled.
    assert all(row["learner/mismatch_max"] < 1e-3 for row in metrics)
    assert json.loads((directory.path / "summary.json").read_text())["steps"] == 8
    nodes.remove("rollout2")


@pytest.mark.long
def test_an_actor_whose_node_died_comes_up_on_another(on_head: Train, nodes: Nodes, tmp_path: Path) -> None:
    nodes.add("rollout3", cpus=1)
    nodes.add("rollout4", cpus=2)
    run = on_head("train", COLD_START, *SMALL, *settings(runs_dir=tmp_path, steps=1000))
    run.wait_for("step    2/", START_S)
    assert actors_on(nodes, "rollout3") == actors_on(nodes, "rollout4") == ["RolloutActor"]
    nodes.remove("rollout3")
    run.wait_for("serves again", START_S)
    assert all(row["learner/mismatch_max"] < 1e-3 for row in RunDirectory(tmp_path / "latest").read_metrics())
    assert actors_on(nodes, "rollout4") == ["RolloutActor", "RolloutActor"]
    run.process.send_signal(signal.SIGINT)
    assert run.wait(60) == 130, run.output()
    assert RunDirectory(tmp_path / "latest").checkpoint_steps()
    nodes.remove("rollout4")

"""A run whose driver is killed goes on once, from what is whole, under what it is told then; and its ledger can say all of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.rundir.layout import RunDirectory
from moments_service.ledger import LedgerReader
from tests.conftest import ROOT, Command, settings

pytestmark = [pytest.mark.chaos, pytest.mark.long]

COLD_START = ROOT / "deploy" / "recipes" / "cold_start.yaml"
START_S = 300.0
SMALL = settings(
    batch_groups=4, group_size=4, evaluation__train_prompts=4, evaluation__samples=1, checkpoint__every=2, checkpoint__keep=9,
    rollout__engine="transformers", prompts__sources__0__held_out=2, prompts__sources__0__limit=40,
)  # fmt: skip


def refused(command: Command) -> str:
    assert command.wait(60) == 2, command.output()
    assert "Traceback" not in command.output()
    return command.output()


def test_a_killed_run_has_one_successor_that_goes_on_from_what_is_whole(
    bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    first = bvblend("train", COLD_START, *SMALL, *settings(steps=400, runs_dir=tmp_path))
    first.wait_for("step    7/", START_S)
    run = RunDirectory((tmp_path / "latest").resolve())
    for more in ((), ("--take-over",)):
        assert f"is run by process {first.process.pid} on " in refused(bvblend("train", "--resume", run.path, *more))
    first.process.kill()
    first.wait(10)
    with run.metrics.open("a") as log:
        log.write('{"step": 99, "rew')
    *_, older, newest = run.checkpoint_steps()
    shard = next((run.checkpoint(newest) / "learner").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1000] ^= 64
    shard.write_bytes(data)

    assert f"{shard.name} is damaged" in (said := refused(bvblend("train", "--resume", run.path)))
    assert f"--from-step {older}" in said
    at = "--from-step", older
    fewer = bvblend("train", "--resume", run.path, *at, *settings(prompts__sources__0__limit=30))
    assert "10 are not among the 690 of this run" in refused(fewer)
    assert "steps: 1 is less than" in refused(bvblend("train", "--resume", run.path, *at, *settings(steps=1)))

    changed = settings(steps=older + 4, moments__estimator__scale="none", prompts__sources__0__limit=60)
    both = [bvblend("train", "--resume", run.path, "--resume-from-older", *changed) for _ in range(2)]
    assert sorted(one.wait(START_S) for one in both) == [0, 2], "\n".join(one.output() for one in both)
    went_on = next(one.output() for one in both if one.process.returncode == 0)
    assert 'changed since the last start: moments.estimator.scale: "cluster" -> "none"' in went_on
    assert "20 new training prompts; an epoch over all 720 begins" in went_on

    assert json.loads(run.summary.read_text())["steps"] == older + 4
    assert [row["step"] for row in run.read_metrics()] == list(range(older + 4))
    with LedgerReader(run.moments) as ledger:
        assert ledger.incarnations() == {0: -1, 1: older - 1}
        groups = [ledger.batch(*place)[0].group.group_id for place in ((0, 2), (1, older + 2))]
    for group in groups:
        explained = bvblend("explain", group, "--run", run.path)
        assert explained.wait(60) == 0 and "the same, bit for bit" in explained.output()
    rebuilt = bvblend("moments", "rebuild", run.path)
    assert rebuilt.wait(60) == 0 and "bit for bit" in rebuilt.output()

"""A verifier that breaks in the middle of a run."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.rundir.layout import RunDirectory
from tests.conftest import ROOT, Command, settings

pytestmark = pytest.mark.integration

VERIFIER = """
import itertools

calls = itertools.count()

def breaks(prompt, completion: str) -> float:
    if next(calls) >= {after}:
        {broken}
    # Whatever the policy says, about a third of the completions are right.
    return float(sum(completion.encode()) % 3 == 0)
"""

RECIPE = f"""
name: broken
policy: {ROOT / "deploy" / "recipes" / "cold_start" / "policy"}
steps: 40
batch_groups: 16
group_size: 2
prompts:
  max_tokens: 100
  sources:
    - {{kind: reasoning_gym, name: sums, task: chain_sum, limit: 100, held_out: 2, verifier: "my_verifier:breaks"}}
sampling: {{max_tokens: 6}}
rollout: {{engine: transformers, max_model_len: 128}}
moments: {{clusters: {{count: 4}}, health: {{reaction: stop}}}}
learner: {{optimizer: {{lr: 1.0e-6}}}}
checkpoint: {{every: 5}}
"""


@pytest.mark.parametrize(
    ("broken", "alarm"),
    [
        ("return 1.0", "reward jumped"),
        # The way from an alarm to the end is that of the first; what raises each alarm is in tests/unit/test_health.py.
        pytest.param("return 0.0", "reward fell", marks=pytest.mark.long),
        # The run that pauses, below, sees this one too.
        pytest.param("raise OSError('disk full')", "many errors", marks=pytest.mark.long),
    ],
)
def test_a_verifier_that_breaks_stops_the_run_before_it_learns_much(
    bvblend: Callable[..., Command], tmp_path: Path, broken: str, alarm: str
) -> None:
    (tmp_path / "my_verifier.py").write_text(VERIFIER.format(after=12 * 32, broken=broken))
    (tmp_path / "my_recipe.yaml").write_text(RECIPE)
    command = bvblend("train", "my_recipe.yaml", *settings(evaluation__train_prompts=0), cwd=tmp_path)
    assert command.wait(300) == 4, command.output()
    run = tmp_path / "runs" / "latest"
    alarms = [json.loads(line) for line in (run / "alarms.jsonl").read_text().splitlines()]
    assert alarm in {row["kind"] for row in alarms}, alarms
    # Twelve batches were good; evaluation takes a few calls of its own.
    assert all(10 <= row["step"] <= 18 for row in alarms), alarms
    assert "moments.health.reaction: stop" in command.output() and "--resume" in command.output()
    assert max(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")) <= alarms[0]["step"]


def test_a_paused_run_goes_on_when_somebody_says_so_and_is_stopped_with_a_checkpoint(
    bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    half = "if sum(completion.encode()) % 2: raise OSError('disk full')"
    (tmp_path / "my_verifier.py").write_text(VERIFIER.format(after=12 * 32, broken=half))
    (tmp_path / "my_recipe.yaml").write_text(RECIPE)
    pausing = settings(evaluation__train_prompts=0, moments__health__reaction="pause", checkpoint__every=0)
    command = bvblend("train", "my_recipe.yaml", *pausing, cwd=tmp_path)
    command.wait_for("paused; remove", 300)
    run = RunDirectory(tmp_path / "runs" / "latest")
    held = len(run.read_metrics())
    run.paused.unlink()
    # Half of every batch is errors now, so it is paused again after the step that it was let go on with.
    command.wait_for("paused; remove", 300, times=2)
    assert len(run.read_metrics()) == held + 1

    command.process.send_signal(signal.SIGINT)
    assert command.wait(20) == 130, command.output()
    (step,) = run.checkpoint_steps()
    assert not run.paused.exists() and step == held + 1
    alarms = [json.loads(line) for line in run.alarms.read_text().splitlines()]
    errors = [row["step"] for row in alarms if row["kind"] == "many errors"]
    assert errors == [held, step], "nothing was learned from the last batch"

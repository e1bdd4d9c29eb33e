"""A verifier that breaks in the middle of a run."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.rundir.layout import RunDirectory
from tests.conftest import ROOT, Command, settings, wait_a_moment

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
    [("return 1.0", "reward jumped"), ("return 0.0", "reward fell"), ("raise OSError('disk full')", "many errors")],
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


def test_a_paused_run_is_stopped_with_a_checkpoint_or_goes_on_when_somebody_says_so(
    bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    (tmp_path / "my_verifier.py").write_text(VERIFIER.format(after=12 * 32, broken="return 0.0"))
    (tmp_path / "my_recipe.yaml").write_text(RECIPE)
    pausing = settings(evaluation__train_prompts=0, moments__health__reaction="pause", checkpoint__every=0)
    command = bvblend("train", "my_recipe.yaml", *pausing, cwd=tmp_path)
    command.wait_for("paused; remove", 300)
    command.process.send_signal(signal.SIGINT)
    assert command.wait(20) == 130, command.output()
    run = RunDirectory(tmp_path / "runs" / "latest")
    (step,) = run.checkpoint_steps()
    assert not run.paused.exists()
    assert json.loads(run.alarms.read_text().splitlines()[0])["step"] == step, "nothing was learned from that batch"

    # The verifier counts from zero again, and breaks again.
    resumed = bvblend("train", "--resume", run.path, *settings(steps=step + 18), cwd=tmp_path)
    resumed.wait_for("paused; remove", 300)
    deadline = time.monotonic() + 300
    while resumed.process.poll() is None and time.monotonic() < deadline:
        run.paused.unlink(missing_ok=True)
        wait_a_moment(resumed.process)
    assert resumed.wait(1) == 0, resumed.output()
    assert [row["step"] for row in run.read_metrics()] == list(range(step + 18))

"""A live run, looked at from outside: by `top`, and by `doctor` as somebody would who was asked for help."""

import json
import re
import signal
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Command, settings

pytestmark = pytest.mark.integration

START_S = 300.0
SECRET = "s3cr3t-of-the-run"


def test_a_live_run_shows_its_state_and_its_stacks_and_no_secret(
    bvblend: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    recipe = ROOT / "deploy" / "recipes" / "cold_start.yaml"
    quick = settings(steps=1000, evaluation__train_prompts=8, checkpoint__every=0, runs_dir=tmp_path, name=SECRET)
    command = bvblend("train", recipe, *quick, "--dashboard", "0")
    command.wait_for("step    3/", START_S)
    monkeypatch.delenv("WANDB_API_KEY")  # whoever helps does not have it
    run = tmp_path / "latest"

    top = bvblend("top", run)
    assert top.wait(60) == 0, top.output()
    assert "running" in top.output() and "1 of 1 actors serve" in top.output() and "pass@1" in top.output()
    runs = bvblend("runs", tmp_path)
    assert runs.wait(60) == 0 and "running" in runs.output(), runs.output()

    (page,) = re.findall(r"dashboard: (http://127\.0\.0\.1:\d+/)", command.output())
    with urllib.request.urlopen(f"{page}api/run?name={run.resolve().name}", timeout=30) as answer:
        shown = json.load(answer)
    assert shown["state"] == "running" and shown["steps"] >= 2 and shown["histograms"]["staleness"] == {"0": 1.0}

    bundle = tmp_path / "help.zip"
    doctor = bvblend("doctor", run, "--out", bundle)
    assert doctor.wait(120) == 0, doctor.output()
    with zipfile.ZipFile(bundle) as file:
        texts = {name: file.read(name).decode() for name in file.namelist()}
    assert SECRET not in "".join(texts.values()) and "[redacted WANDB_API_KEY]" in texts["run/config.yaml"]
    processes = {row["role"]: row for row in json.loads(texts["processes.json"])}
    assert set(processes) == {"driver", "moments service", "learner rank 0", "rollout actor 0"}
    assert all(row["resident"] > 50e6 for row in processes.values())
    assert "deploy/cli/main.py" in texts["stacks/driver.txt"]
    for role in processes:
        assert "Thread" in texts[f"stacks/{role.replace(' ', '-')}.txt"], role
    # vLLM's engine is a process of its own, below the actor.
    assert texts["stacks/rollout-actor-0.txt"].count("Process ") > 1
    assert any(name.startswith("logs/rollout-actor-0") for name in texts)
    assert json.loads(texts["about.json"])["run"]["state"] == "running"
    assert json.loads(texts["ledger.json"])["starts"][0]["steps"] >= 2

    command.process.send_signal(signal.SIGINT)
    assert command.wait(20) == 130, command.output()

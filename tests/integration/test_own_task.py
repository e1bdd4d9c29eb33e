"""The README's ten lines: a policy by its model name, somebody's own prompts and verifier, from a folder of their own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.import_path import PACKAGES
from tests.conftest import Command, settings
from tests.hub import cache_as

pytestmark = pytest.mark.integration

VERIFIER = """
def ends_with_answer(prompt, completion: str) -> float:
    return float(completion.strip().endswith(prompt.answer))
"""

RECIPE = """
name: my_task
policy: somebody/tiny
steps: 2
batch_groups: 4
group_size: 2
prompts:
  max_tokens: 100
  sources:
    - {kind: jsonl, name: sums, path: sums.jsonl, held_out: 4, verifier: "my_task:ends_with_answer"}
sampling: {max_tokens: 8}
rollout: {engine: transformers, max_model_len: 128}
"""


def test_own_prompts_and_verifier_in_ten_lines(
    bvblend: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cache_as("somebody/tiny", tmp_path / "home" / ".cache" / "huggingface", monkeypatch)
    (tmp_path / "my_task.py").write_text(VERIFIER)
    (tmp_path / "my_recipe.yaml").write_text(RECIPE)
    lines = [{"question": f"{a} + {b} = ", "answer": f"Add them. #### {a + b}"} for a in range(5) for b in range(5)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, lines)))
    taken = {
        f"{name}.py" for name in PACKAGES if name != "deploy"
    }  # with that one, `python -m deploy.cli` is not our command
    for name in taken:
        (tmp_path / name).write_text("raise SystemExit('a file of the user was taken for ours')")
    plan = bvblend("plan", "my_recipe.yaml", cwd=tmp_path)
    command = bvblend("train", "my_recipe.yaml", *settings(evaluation__train_prompts=4), cwd=tmp_path)
    assert plan.wait(120) == 0 and "21 for training, 4 held out" in plan.output(), plan.output()
    assert command.wait(300) == 0, command.output()
    rows = [json.loads(line) for line in (tmp_path / "runs" / "latest" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["reward/errors"] == 0 for row in rows)
    # Beside the run directory there are the cache of embeddings and what matplotlib keeps for itself.
    own = taken | {"my_task.py", "my_recipe.yaml", "sums.jsonl", "output-0.log", "output-1.log"}
    assert {path.name for path in tmp_path.iterdir()} - own - {"__pycache__"} == {"runs", "home"}
    assert {path.name for path in (tmp_path / "home").iterdir()} <= {".cache", ".config"}
    assert (tmp_path / "home" / ".cache" / "bvblend" / "embeddings").is_dir()
    trained = tmp_path / "runs" / "latest" / "policy"
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {path.name for path in trained.iterdir()}


def test_a_verifier_that_is_not_there_is_named_before_anything_starts(
    bvblend: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_as("somebody/tiny", tmp_path / "huggingface", monkeypatch)
    (tmp_path / "my_recipe.yaml").write_text(RECIPE)
    (tmp_path / "sums.jsonl").write_text("\n".join(json.dumps({"question": f"{i}", "answer": "1"}) for i in range(9)))
    misspelt = bvblend("plan", "my_recipe.yaml", "--set", "prompts.sources.0.verifier=exactly", cwd=tmp_path)
    command = bvblend("train", "my_recipe.yaml", cwd=tmp_path)
    assert misspelt.wait(120) == 2 and "did you mean `exact`?" in misspelt.output(), misspelt.output()
    assert command.wait(120) == 2
    assert "verifier `my_task:ends_with_answer` does not load: No module named 'my_task'" in command.output()
    assert not (tmp_path / "runs").exists()

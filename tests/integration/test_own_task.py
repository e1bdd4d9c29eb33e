"""The README's ten lines: somebody's own prompts and verifier, from a folder of their own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Command, settings

pytestmark = pytest.mark.integration

VERIFIER = """
def ends_with_answer(prompt, completion: str) -> float:
    return float(completion.strip().endswith(prompt.answer))
"""

RECIPE = f"""
name: my_task
policy: {ROOT / "deploy" / "recipes" / "cold_start" / "policy"}
steps: 2
batch_groups: 4
group_size: 2
prompts:
  sources:
    - {{kind: jsonl, name: sums, path: sums.jsonl, held_out: 4, verifier: "my_task:ends_with_answer"}}
sampling: {{max_tokens: 8}}
rollout: {{engine: transformers}}
"""


def test_own_prompts_and_verifier_in_ten_lines(
    bvblend: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "my_task.py").write_text(VERIFIER)
    (tmp_path / "my_recipe.yaml").write_text(RECIPE)
    lines = [{"question": f"{a} + {b} = ", "answer": f"Add them. #### {a + b}"} for a in range(5) for b in range(5)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plan = bvblend("plan", "my_recipe.yaml", cwd=tmp_path)
    assert plan.wait(120) == 0 and "21 for training, 4 held out" in plan.output(), plan.output()
    command = bvblend("train", "my_recipe.yaml", *settings(evaluation__train_prompts=4), cwd=tmp_path)
    assert command.wait(300) == 0, command.output()
    rows = [json.loads(line) for line in (tmp_path / "runs" / "latest" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["reward/errors"] == 0 for row in rows)
    # Beside the run directory there are the cache of embeddings, Ray's token and what matplotlib keeps for itself.
    own = {"my_task.py", "my_recipe.yaml", "sums.jsonl", "output-0.log", "output-1.log"}
    assert {path.name for path in tmp_path.iterdir()} - own - {"__pycache__"} == {"runs", "home"}
    assert {path.name for path in (tmp_path / "home").iterdir()} <= {".cache", ".ray", ".config"}
    assert (tmp_path / "home" / ".cache" / "bvblend" / "embeddings").is_dir()


def test_a_verifier_that_is_not_there_is_named_before_the_first_step(
    bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    (tmp_path / "my_recipe.yaml").write_text(RECIPE)
    (tmp_path / "sums.jsonl").write_text("\n".join(json.dumps({"question": f"{i}", "answer": "1"}) for i in range(9)))
    command = bvblend("train", "my_recipe.yaml", cwd=tmp_path)
    assert command.wait(300) != 0
    assert "my_task" in command.output()
    assert not (tmp_path / "runs" / "latest" / "metrics.jsonl").exists()

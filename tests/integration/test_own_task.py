"""The README's ten lines as they are printed: a policy by its model name, somebody's own prompts and verifier, from a folder of their own."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.import_path import PACKAGES
from tests.conftest import ROOT, Command, settings
from tests.hub import cache_as

pytestmark = pytest.mark.integration

README, YOUR_TASK = ROOT / "README.md", ROOT / "docs" / "your_task.md"
SMALLER = settings(
    steps=2,
    batch_groups=4,
    group_size=2,
    evaluation__train_prompts=4,
    prompts__max_tokens=100,
    prompts__sources__0__held_out=4,
    sampling__max_tokens=8,
    rollout__engine="transformers",
    rollout__max_model_len=128,
)
"""Of the recipe as it is printed, which is for a machine with a GPU."""


def printed(page: Path, name: str) -> str:
    """The file of this name as a page shows it: the block whose first line is its name."""
    (found,) = re.findall(
        rf"^```\w+\n(# {re.escape(name)}\n.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return str(found)


def lay_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader of the README has in a folder, with a tiny policy under the name of the recipe's."""
    cache_as("Qwen/Qwen3-0.6B", place / "home" / ".cache" / "huggingface", monkeypatch)
    (place / "my_recipe.yaml").write_text(printed(README, "my_recipe.yaml"))
    lines = [{"question": f"{a} + {b} = ", "answer": f"Add them.\n#### {a + b}"} for a in range(5) for b in range(5)]
    (place / "gsm8k").mkdir()
    (place / "gsm8k" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.parametrize("name", ["my_task.py", "my_recipe.yaml"])
def test_pages_print_the_same_file(name: str) -> None:
    assert printed(README, name) == printed(YOUR_TASK, name)


def test_own_prompts_and_verifier_in_ten_lines(
    bvblend: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    lay_out(tmp_path, monkeypatch)
    (tmp_path / "my_task.py").write_text(printed(README, "my_task.py"))
    taken = {
        f"{name}.py" for name in PACKAGES if name != "deploy"
    }  # with that one, `python -m deploy.cli` is not our command
    for name in taken:
        (tmp_path / name).write_text("raise SystemExit('a file of the user was taken for ours')")
    plan = bvblend("plan", "my_recipe.yaml", *SMALLER, cwd=tmp_path)
    command = bvblend("train", "my_recipe.yaml", *SMALLER, cwd=tmp_path)
    assert plan.wait(120) == 0 and "21 for training, 4 held out" in plan.output(), plan.output()
    assert command.wait(300) == 0, command.output()
    rows = [json.loads(line) for line in (tmp_path / "runs" / "latest" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["reward/errors"] == 0 for row in rows)
    # Beside the run directory there are the cache of embeddings and what matplotlib keeps for itself.
    own = taken | {"my_task.py", "my_recipe.yaml", "gsm8k", "output-0.log", "output-1.log"}
    assert {path.name for path in tmp_path.iterdir()} - own - {"__pycache__"} == {"runs", "home"}
    assert {path.name for path in (tmp_path / "home").iterdir()} <= {".cache", ".config"}
    assert (tmp_path / "home" / ".cache" / "bvblend" / "embeddings").is_dir()
    trained = tmp_path / "runs" / "latest" / "policy"
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {path.name for path in trained.iterdir()}


def test_a_verifier_that_is_not_there_is_named_before_anything_starts(
    bvblend: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path, monkeypatch)
    misspelt = bvblend("plan", "my_recipe.yaml", *SMALLER, "--set", "prompts.sources.0.verifier=exactly", cwd=tmp_path)
    command = bvblend("train", "my_recipe.yaml", *SMALLER, cwd=tmp_path)
    assert misspelt.wait(120) == 2 and "did you mean `exact`?" in misspelt.output(), misspelt.output()
    assert command.wait(120) == 2
    assert "verifier `my_task:ends_with_answer` does not load: No module named 'my_task'" in command.output()
    assert not (tmp_path / "runs").exists()

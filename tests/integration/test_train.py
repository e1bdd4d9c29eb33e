"""The command from a recipe to a run directory, with real Ray, real engines and a real FSDP learner."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from moments_service.ledger import LedgerReader
from tests.conftest import ROOT, Command, settings

pytestmark = pytest.mark.integration

COLD_START = ROOT / "deploy" / "recipes" / "cold_start.yaml"
START_S = 300.0
SMALL = settings(
    batch_groups=4, group_size=2, evaluation__train_prompts=8, prompts__sources__0__held_out=4, checkpoint__every=2
)


def rows(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    timed = {"seconds", "phases", "tokens_per_s", "incarnation"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in timed and not k.endswith("_s")} for row in lines]


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "how",
    [[], settings(prompts__order="signal", group_size=4, max_group_size=8)],
    ids=["as shipped", "sampled by what the moments know"],
)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    bvblend: Callable[..., Command], tmp_path: Path, how: list[str]
) -> None:
    mirror = tmp_path / "mirror"
    short = settings(rollout__engine="transformers", steps=4, runs_dir=tmp_path, mirror=mirror.as_uri())
    straight = bvblend("train", COLD_START, *SMALL, *short, *how)
    assert straight.wait(START_S) == 0, straight.output()
    run = (tmp_path / "latest").resolve()
    again = tmp_path / "again"
    # The copy that the mirror made is as good as the run itself.
    assert files(mirror / run.name) == files(run)
    shutil.copytree(mirror / run.name, again)
    shutil.rmtree(again / "checkpoints" / "step-000004")
    shutil.rmtree(again / "policy")
    resumed = bvblend("train", "--resume", again)
    assert resumed.wait(START_S) == 0, resumed.output()

    expected = load_file(run / "policy" / "model.safetensors")
    found = load_file(again / "policy" / "model.safetensors")
    assert {name: tensor.tobytes() for name, tensor in found.items()} == {
        name: tensor.tobytes() for name, tensor in expected.items()
    }
    assert rows(again)[-2:] == rows(run)[-2:]
    with closing(LedgerReader(again / "moments")) as ledger:
        before, after = (ledger.folded((number, 2, 3), "cluster, rewards", "advantages") for number in (0, 1))
    assert before == after and len(after) == 8


def test_a_run_with_vllm_leaves_a_whole_run_directory(bvblend: Callable[..., Command], tmp_path: Path) -> None:
    command = bvblend("train", COLD_START, *settings(steps=5, evaluation__train_prompts=16, runs_dir=tmp_path))
    assert command.wait(START_S) == 0, command.output()
    run = tmp_path / "latest"
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) >= {
        "train",
        "held_out",
        "sources",
        "steps",
        "seconds",
        "phases",
        "signal_ratio",
        "versions",
        "machine",
    }
    assert summary["steps"] == 5
    assert set(summary["phases"]) == {"generate", "score", "moments", "learn", "publish"}
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["policy_version"] for row in metrics] == [1, 2, 3, 4, 5]
    # On-policy in float32: trainer and engine agree on every sampled token.
    assert all(row["learner/mismatch_max"] < 1e-3 for row in metrics)
    # From the second step on history speaks up in groups that GRPO throws away.
    assert metrics[-1]["signal/own"] > metrics[-1]["signal/grpo"]
    for name in ("config.yaml", "summary.md", "summary.png", "policy/config.json", "policy/tokenizer.json"):
        assert (run / name).stat().st_size > 0, name
    with sqlite3.connect(f"file:{run}/moments/ledger-000000.sqlite?mode=ro", uri=True) as ledger:
        (groups,) = ledger.execute("SELECT COUNT(*) FROM groups").fetchone()
        (texts,) = ledger.execute("SELECT COUNT(*) FROM transcripts").fetchone()
    assert groups >= 5 * 32 and texts == groups
    # A log has one readable line a step.
    assert sum(line.startswith("step ") for line in command.output().splitlines()) == 5
    command.wait_until_nothing_is_left(20)

"""Moments beyond one run: clusters that split on the way, and a second run that begins with what the first one knew."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Command, settings

pytestmark = pytest.mark.integration

# Prompts with an even answer are always solved, the others never: no single cluster can speak for both.
VERIFIER = """
def even(prompt, completion: str) -> float:
    return float(int(prompt.answer) % 2 == 0)
"""

RECIPE = f"""
name: split
policy: {ROOT / "deploy" / "recipes" / "cold_start" / "policy"}
steps: 4
batch_groups: 16
group_size: 4
prompts:
  max_tokens: 100
  sources:
    - {{kind: reasoning_gym, name: sums, task: chain_sum, limit: 64, held_out: 2, verifier: "my_verifier:even"}}
sampling: {{max_tokens: 4}}
rollout: {{engine: transformers, max_model_len: 128}}
moments: {{estimator: bv_blend, clusters: {{count: 1, adapt: true}}}}
checkpoint: {{every: 2}}
"""


def history_weights(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["advantage/history_weight"] for line in lines]


def test_clusters_split_on_the_way_and_the_next_run_knows_what_this_one_learned(
    bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    (tmp_path / "my_verifier.py").write_text(VERIFIER)
    (tmp_path / "my_recipe.yaml").write_text(RECIPE)
    first = bvblend("train", "my_recipe.yaml", *settings(evaluation__train_prompts=0), cwd=tmp_path)
    assert first.wait(300) == 0, first.output()
    run = (tmp_path / "runs" / "latest").resolve()
    versions = [json.loads(line) for line in (run / "moments" / "clusters.jsonl").read_text().splitlines()]
    assert [version["after_step"] for version in versions][:2] == [-1, 1]
    assert versions[1]["transfers"], "the cluster of even and odd answers did not split"
    assert history_weights(run)[0] == 0.0

    export = bvblend("moments", "export", run, "--out", tmp_path / "exported")
    assert export.wait(60) == 0, export.output()
    second = bvblend(
        "train",
        "my_recipe.yaml",
        "--warm-start",
        tmp_path / "exported",
        "--discount",
        "0.5",
        *settings(steps=1, evaluation__train_prompts=0),
        cwd=tmp_path,
    )
    assert second.wait(300) == 0, second.output()
    assert history_weights((tmp_path / "runs" / "latest").resolve())[0] > 0.0

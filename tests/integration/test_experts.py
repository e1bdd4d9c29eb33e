"""A mixture of experts trains from `bvblend train` to its exported policy, on both engines."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file

from tests.conftest import ROOT, Command, settings
from tests.hub import POLICY
from tests.made_policies import made

pytestmark = [pytest.mark.integration, pytest.mark.long]


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_mixture_of_experts_trains_and_is_exported_under_the_names_of_its_files(
    engine: str, bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    policy = tmp_path / "policy"
    config = transformers.Qwen3MoeConfig(
        vocab_size=350,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    made(config).save_pretrained(policy)
    for file in POLICY.glob("tokenizer*"):
        shutil.copy(file, policy)
    run = bvblend(
        "train",
        ROOT / "deploy" / "recipes" / "cold_start.yaml",
        *settings(policy=policy, steps=3, batch_groups=4, runs_dir=tmp_path / "runs", evaluation__train_prompts=8),
        *settings(rollout__engine=engine, prompts__sources__0__held_out=4, learner__optimizer__lr=0.05),
        # Random weights solve nothing; this estimator learns from failures alone.
        *settings(moments__estimator="w_reinforce"),
    )
    assert run.wait(300.0) == 0, run.output()
    rows = [json.loads(line) for line in (tmp_path / "runs" / "latest" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    # The log-probs of the engine are the learner's: the weights that were sent are those that sample.
    assert all(row["learner/mismatch_max"] < 1e-3 for row in rows), rows
    before = load_file(policy / "model.safetensors")
    after = load_file(tmp_path / "runs" / "latest" / "policy" / "model.safetensors")
    assert after.keys() == before.keys()
    assert any(not after[key].equal(before[key]) for key in before if ".experts." in key)

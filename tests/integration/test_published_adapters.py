"""Runs that send their engines the adapter alone are the runs that send them the merged policy; with real Ray."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.conftest import ROOT, Command, settings
from tests.integration.test_train import SMALL, rows

pytestmark = [pytest.mark.integration, pytest.mark.long]

COLD_START = ROOT / "deploy" / "recipes" / "cold_start.yaml"
START_S = 300.0


def trained(bvblend: Callable[..., Command], runs: Path, engine: str, publish: str) -> Path:
    adapter = (
        f"{{kind: sos_lora, publish: {publish}}}" if engine == "transformers" else f"{{kind: lora, publish: {publish}}}"
    )
    own = settings(
        runs_dir=runs, steps=4, rollout__engine=engine, learner__adapter=adapter, learner__optimizer__lr=2e-3
    )
    run = bvblend("train", COLD_START, *SMALL, *own)
    assert run.wait(START_S) == 0, run.output()
    return (runs / "latest").resolve()


def test_on_transformers_it_is_the_same_run_bit_for_bit(bvblend: Callable[..., Command], tmp_path: Path) -> None:
    merged, alone = (trained(bvblend, tmp_path / publish, "transformers", publish) for publish in ("merged", "adapter"))
    assert rows(alone) == rows(merged)
    policies = [load_file(run / "policy" / "model.safetensors") for run in (alone, merged)]
    assert {name: tensor.tobytes() for name, tensor in policies[0].items()} == {
        name: tensor.tobytes() for name, tensor in policies[1].items()
    }


def test_on_vllm_the_learner_finds_the_log_probs_that_were_sampled(
    bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    found = rows(trained(bvblend, tmp_path, "vllm", "adapter"))
    assert len(found) == 4
    assert all(row["learner/mismatch_max"] < 1e-3 for row in found)

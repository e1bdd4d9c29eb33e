"""Losses, aggregations, masks and KL estimators against TRL's and verl's own functions, as recorded."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.aggregations import Totals
from learner.config import LearnerConfig
from learner.losses.objective import Objective
from tests.unit.test_learner_loss import batch_of

pytestmark = pytest.mark.contract

RECORDED = [json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "recorded").glob("losses_*.json"))]
CASES = [(one["arrays"][case["spread"]], case) for one in RECORDED for case in one["cases"]]


def test_both_libraries_are_recorded_with_their_versions() -> None:
    assert [one["library"] for one in RECORDED] == ["trl", "verl"]
    assert all(one["version"] and one["torch"] for one in RECORDED)


@pytest.mark.parametrize(
    ("arrays", "case"), CASES, ids=[f"{case['name']} {case['spread']}".replace(" ", "_") for _, case in CASES]
)
def test_loss_and_gradient_are_those_of_the_library(arrays: dict[str, Any], case: dict[str, Any]) -> None:
    mask = np.array(arrays["mask"]) > 0
    given = {name: np.array(values)[mask] for name, values in arrays.items()}
    sample = np.nonzero(mask)[0]
    group = sample // 2
    config = LearnerConfig.model_validate({"aggregation": "seq_mean_token_mean"} | case["ours"])
    totals = Totals(groups=len(np.unique(group)), samples=len(mask), tokens=len(sample))
    weights = config.aggregation(sample, group, totals)
    batch = batch_of(given["old"], given["reference"], given["rollout"], given["advantages"], weights, sample)
    x = torch.from_numpy(given["logprobs"]).requires_grad_()
    # verl's masks know the log-probs of now, where ours know those from before the update.
    rows = [mask.statistics(given["advantages"], given["logprobs"]) for mask in config.masks]
    batch = replace(batch, mask_statistics=torch.from_numpy(np.stack(rows)) if rows else None)
    loss, _ = Objective(config)(batch, x, torch.zeros_like(x))
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(gradient.numpy(), np.array(case["gradient"])[mask], rtol=1e-6, atol=1e-9)

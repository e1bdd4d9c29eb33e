"""What a step of the output head would do to tokens, and CAPO's mask in a learner that knows it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from actors.weights.block import open_tensors
from learner.config import LearnerConfig
from learner.model.head_move import head_move
from learner.model.logits import LogitTransform
from learner.optim import AdamW
from learner.rank import LearnerRank
from tests.unit.test_learner_rank import config_with, draw_groups, make_policy, running_rank

pytestmark = pytest.mark.unit
SOFT_CAP = LogitTransform(scale=0.7, cap=2.0)


@pytest.mark.parametrize("elements", [1, 30, 1000])
@pytest.mark.parametrize("transform", [None, SOFT_CAP])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_is_the_derivative_of_the_log_prob_and_the_variance_of_the_logits_change(
    elements: int, transform: LogitTransform | None, with_bias: bool
) -> None:
    rng = np.random.default_rng(0)
    hidden, weight, step = rng.normal(size=(7, 4)), rng.normal(size=(11, 4)), rng.normal(size=(11, 4))
    bias, targets, temperatures = rng.normal(size=11) * with_bias, rng.integers(0, 11, 7), rng.uniform(0.5, 1.5, 7)

    def logits(size: float) -> np.ndarray:
        raw = hidden @ (weight + size * step).T + bias
        return (raw if transform is None else 2.0 * np.tanh(0.7 * raw / 2.0)) / temperatures[:, None]

    def logprobs(size: float) -> np.ndarray:
        found = logits(size)
        return (found - np.log(np.exp(found).sum(axis=1, keepdims=True)))[np.arange(7), targets]

    h = 1e-5
    first = (logprobs(h) - logprobs(-h)) / (2 * h)
    moved = (logits(h) - logits(-h)) / (2 * h)
    chances = np.exp(logits(0.0)) / np.exp(logits(0.0)).sum(axis=1, keepdims=True)
    mean = (chances * moved).sum(axis=1, keepdims=True)
    arrays = (torch.tensor(each, dtype=torch.float32) for each in (hidden, weight, bias, step))
    states, head, offset, change = arrays
    found = head_move(
        states,
        head,
        offset if with_bias else None,
        change,
        torch.from_numpy(targets),
        torch.tensor(temperatures, dtype=torch.float32),
        elements,
        transform,
    )
    np.testing.assert_allclose(found[0], first, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], (chances * (moved - mean) ** 2).sum(axis=1), rtol=1e-4, atol=1e-5)
    if transform is None:
        second = (logprobs(1e-3) - 2 * logprobs(0.0) + logprobs(-1e-3)) / 1e-6
        np.testing.assert_allclose(found[1], -second, rtol=1e-3, atol=1e-4)


def head_of(rank: LearnerRank, tied: bool) -> torch.Tensor:
    packed = rank.export_weights(1)
    assert packed is not None
    return open_tensors(packed[0].manifest, packed[1])[
        "model.embed_tokens.weight" if tied else "lm_head.weight"
    ].clone()


@pytest.mark.parametrize("tied", [True, False])
def test_the_planned_step_is_what_adam_does_next(tmp_path: Path, tied: bool) -> None:
    """Where the gradient does not change, with moments that have settled: then the next moments are the last ones."""
    options = AdamW(lr=1e-3, betas=(0.0, 0.0), weight_decay=0.0)
    config = config_with(
        optimizer=options, masks=[{"kind": "capo", "fisher": 1e9, "hessian": 1e9}], schedule="constant"
    )
    groups = draw_groups(0)
    with running_rank(make_policy(tmp_path / "policy", tied), config) as rank:
        assert rank.optimizers.planned_step(rank.policy_step.head) is None
        before = head_of(rank, tied)
        rank.step([groups], 0)
        after = head_of(rank, tied)
        planned = rank.optimizers.planned_step(rank.policy_step.head)
    assert planned is not None
    np.testing.assert_allclose(planned, after - before, atol=2e-7)
    assert float(planned.abs().max()) > 1e-4


def test_capo_leaves_out_nothing_at_first_and_then_by_its_limits(tmp_path: Path) -> None:
    path = make_policy(tmp_path / "policy")
    left_out = {}
    for limit in (1e9, 1e-5, 1e-30):
        config = config_with(masks=[{"kind": "capo", "fisher": limit, "hessian": 1e9}])
        with running_rank(path, config) as rank:
            first, second = (rank.step([draw_groups(step)], step) for step in range(2))
        assert first["capo_share"] == first["capo_fisher"] == first["capo_hessian"] == 0.0
        assert second["capo_fisher_max"] > second["capo_fisher"] > 0 and second["capo_hessian"] > 0
        left_out[limit] = second["capo_share"]
    assert left_out[1e9] == 0.0 < left_out[1e-5] < left_out[1e-30] == 1.0


@pytest.mark.parametrize("sections", [{"trainable": r"layers\.2\."}, {"adapter": "lora"}])
def test_capo_is_refused_where_the_head_is_not_trained(tmp_path: Path, sections: dict[str, str]) -> None:
    config = LearnerConfig.model_validate({"masks": ["capo"]} | sections)
    with (
        pytest.raises(ValueError, match="capo needs the output head's own weight to be trained by AdamW"),
        running_rank(make_policy(tmp_path / "policy"), config),
    ):
        pass
    with pytest.raises(ValueError, match="capo reads the optimiser's moments"):
        LearnerConfig.model_validate({"masks": ["capo"], "memory": {"offload_optimizer": True}})

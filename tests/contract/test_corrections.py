"""What every correction keeps to, and where ratios start for tokens of every age."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from deploy.config.recipe import ConfigError, load_recipe
from learner.batching.packed import PackedBatch
from learner.config import LearnerConfig
from learner.corrections import AnyCorrection, CorrectionKind
from learner.losses import LossInputs
from learner.losses.metrics import Tally
from learner.losses.objective import Objective
from learner.soundness import refuse_uncorrected_staleness
from tests.contract.test_losses import (
    COLD_START,
    central_differences,
    drawn,
    partitions,
    picked,
    pieces,
    some_examples,
    whole_batch,
)
from tests.unit.test_learner_loss import batch_of

pytestmark = pytest.mark.contract

CORRECTION: TypeAdapter = TypeAdapter(AnyCorrection)
CORRECTIONS: dict[str, Any] = {
    " ".join(map(str, options.values())): CORRECTION.validate_python(options)
    for options in (
        {"kind": "none"},
        *({"kind": "tis", "level": level, "cap": 1.2} for level in ("token", "sequence", "geometric")),
        *({"kind": "mis", "level": level, "low": 0.8, "high": 1.1} for level in ("token", "sequence", "geometric")),
        {"kind": "icepop", "low": 0.7, "high": 1.3},
        {"kind": "decoupled_ppo"},
    )
}
every_correction = pytest.mark.parametrize("name", CORRECTIONS)
REPORTED = ("correction_weight", "correction_capped", "correction_left_out")


def apart(seed: int, spread: float = 0.3, **changes: Any) -> LossInputs:
    """Tokens that the sampler sees otherwise than the policy."""
    inputs = drawn(seed, **changes)
    rng = np.random.default_rng(seed + 50)
    return replace(inputs, rollout=inputs.old + torch.from_numpy(spread * rng.normal(size=len(inputs.old))))


def oracle(options: Any, old: np.ndarray, rollout: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Token by token, from the formula."""
    weights = []
    for t in range(len(old)):
        gaps = [old[i] - rollout[i] for i in range(len(old)) if sample[i] == sample[t]]
        level = getattr(options, "level", "token")
        log = {"token": old[t] - rollout[t], "sequence": sum(gaps), "geometric": sum(gaps) / len(gaps)}[level]
        ratio = math.exp(min(max(log, -20.0), 20.0))
        if options.kind == "none":
            weights.append(1.0)
        elif options.kind == "tis":
            weights.append(min(ratio, options.cap))
        elif options.kind == "decoupled_ppo":
            weights.append(ratio)
        else:
            weights.append(ratio if options.low <= ratio <= options.high else 0.0)
    return np.array(weights)


def weights_of(name: str, inputs: LossInputs) -> np.ndarray:
    found, _ = CORRECTIONS[name](inputs)
    assert found.shape == inputs.old.shape and not found.requires_grad
    return found.numpy()


def test_every_correction_of_the_registry_is_tried() -> None:
    kinds = {kind.model_fields["kind"].default for kind in get_args(CorrectionKind)}
    assert {options.kind for options in CORRECTIONS.values()} == kinds


@every_correction
@pytest.mark.parametrize("spread", [0.001, 0.3, 40.0])
def test_it_is_what_its_formula_says(name: str, spread: float) -> None:
    for seed in range(3):
        inputs = apart(seed, spread)
        expected = oracle(CORRECTIONS[name], inputs.old.numpy(), inputs.rollout.numpy(), inputs.sample.numpy())
        np.testing.assert_allclose(weights_of(name, inputs), expected, rtol=1e-12)


@every_correction
def test_what_it_reports_is_what_it_does(name: str) -> None:
    inputs = apart(4)
    weights, measured = CORRECTIONS[name](inputs)
    assert set(measured.means) <= set(REPORTED)
    if "correction_left_out" in measured.means:
        assert torch.equal(measured.means["correction_left_out"] == 1, weights == 0)
        assert 0 < float(measured.means["correction_left_out"].mean()) < 1
    if "correction_capped" in measured.means:
        assert torch.equal(measured.means["correction_capped"] == 1, weights == CORRECTIONS[name].cap)
    if name != "none":
        assert torch.equal(measured.means["correction_weight"], weights)


@every_correction
def test_tokens_that_both_see_alike_count_as_they_are(name: str) -> None:
    assert (weights_of(name, drawn(1)) == 1.0).all()


@every_correction
def test_a_sample_of_one_token_is_a_token(name: str) -> None:
    inputs = apart(2, lengths=(1,))
    expected = oracle(CORRECTIONS[name], inputs.old.numpy(), inputs.rollout.numpy(), inputs.sample.numpy())
    np.testing.assert_allclose(weights_of(name, inputs), expected, rtol=1e-12)


@every_correction
def test_tokens_outside_the_mask_are_as_if_they_were_not_there(name: str) -> None:
    inputs = apart(3)
    mask = torch.from_numpy(np.random.default_rng(1).random(len(inputs.old)) < 0.6)
    wild = replace(inputs, mask=mask, rollout=inputs.rollout.where(mask, inputs.rollout - 9.0))
    kept = np.flatnonzero(mask.numpy())
    np.testing.assert_allclose(weights_of(name, wild)[kept], weights_of(name, picked(inputs, kept)), rtol=1e-12)
    nothing = replace(inputs, mask=torch.zeros_like(mask))
    assert np.isfinite(weights_of(name, nothing)).all()


@every_correction
@given(seed=st.integers(0, 99), ranks=partitions, microbatches=partitions)
@some_examples
def test_weights_do_not_depend_on_how_a_batch_is_cut(
    name: str, seed: int, ranks: list[int], microbatches: list[int]
) -> None:
    inputs = whole_batch(seed)
    rng = np.random.default_rng(seed)
    inputs = replace(inputs, rollout=inputs.old + torch.from_numpy(0.2 * rng.normal(size=len(inputs.old))))
    whole = weights_of(name, inputs)
    for cut in pieces(inputs, ranks, microbatches):
        for chosen in cut:
            np.testing.assert_allclose(weights_of(name, picked(inputs, chosen)), whole[chosen], rtol=1e-12)


# --- where ratios start -------------------------------------------------------------------------------------------------

STARTS = {"recompute": 1.0, "rollout": 0.0, "interpolate": None, "average": 1.0}
"""Share of the policy's own log-probs in those that ratios start at; by age for the one in between."""
LAGS = np.array([0, 1, 3])


def aged(seed: int) -> tuple[PackedBatch, np.ndarray, np.ndarray]:
    """Tokens of ages 0, 1 and 3 whose old log-probs no pass has found, and log-probs and weights of theirs."""
    rng = np.random.default_rng(seed)
    size = 30
    rollout = -rng.exponential(size=size)
    now = rollout + 0.3 * rng.normal(size=size)
    weights = rng.random(size)
    batch = batch_of(now, None, rollout, rng.normal(size=size), weights / weights.sum(), np.repeat(np.arange(6), 5))
    lag = LAGS[np.arange(size) % 3]
    return replace(batch, old_logprobs=None, lag=torch.from_numpy(lag)), now, lag


def start_of(how: str, now: np.ndarray, rollout: np.ndarray, lag: np.ndarray) -> np.ndarray:
    own = STARTS[how]
    share = np.where(lag == 0, 1.0, (lag - 1) / np.maximum(lag, 1)) if own is None else np.full(len(now), own)
    return share * now + (1 - share) * rollout


@pytest.mark.parametrize("how", ["recompute", "rollout", "interpolate"])
@pytest.mark.parametrize("correction", ["none", "tis token 1.2", "decoupled_ppo"])
def test_ratios_of_every_age_are_those_of_the_formula_and_so_is_the_gradient(how: str, correction: str) -> None:
    if how == "rollout" and correction != "none":
        return
    options = CORRECTIONS[correction]
    config = LearnerConfig.model_validate({"old_logprobs": how, "correction": options.model_dump()})
    batch, now, lag = aged(3)
    rollout, advantages, weights = (
        getattr(batch, name).numpy() for name in ("rollout_logprobs", "advantages", "weights")
    )
    start = start_of(how, now, rollout, lag)
    counted = weights * oracle(options, start, rollout, batch.sample.numpy())

    def loss_at(x: np.ndarray) -> float:
        ratio = np.exp(x - start)
        return float(-(counted * np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages)).sum())

    x = torch.from_numpy(now.copy()).requires_grad_()
    loss, _ = Objective(config)(batch, x, torch.zeros_like(x))
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == pytest.approx(loss_at(now), rel=1e-12)
    np.testing.assert_allclose(gradient.numpy(), central_differences(loss_at, now), rtol=1e-6, atol=1e-8)
    off = np.abs(now - start) > 1e-9
    assert {int(age) for age in lag[off]} == {"recompute": set(), "rollout": {0, 1, 3}, "interpolate": {1, 3}}[how]


def test_a_token_s_age_draws_the_start_from_the_sampler_to_the_policy() -> None:
    batch, now, lag = aged(5)
    objective = Objective(LearnerConfig.model_validate({"old_logprobs": "interpolate"}))
    old = objective._old(batch, torch.from_numpy(now)).numpy()
    rollout = batch.rollout_logprobs.numpy()
    np.testing.assert_allclose((old - rollout) / (now - rollout), np.choose(np.searchsorted(LAGS, lag), [1, 0, 2 / 3]))


@pytest.mark.parametrize("how", ["recompute", "rollout", "interpolate", {"kind": "average", "decay": 0.5}])
def test_the_mismatch_is_that_of_the_policy_wherever_ratios_start_and_is_told_by_age(how: Any) -> None:
    objective = Objective(LearnerConfig.model_validate({"old_logprobs": how}))
    batch, now, lag = aged(6)
    if isinstance(how, dict):
        batch = replace(batch, old_logprobs=torch.from_numpy(now - 0.5))
    loss, measured = objective(batch, torch.from_numpy(now), torch.zeros(30, dtype=torch.float64))
    tally = Tally(objective.names)
    tally.add([loss], [measured], [batch])
    found = tally.means()
    gap = now - batch.rollout_logprobs.numpy()
    w = np.exp(gap)
    by_age = {"": np.full(30, True), "_by_age/0": lag == 0, "_by_age/1": lag == 1, "_by_age/2-3": lag == 3}
    for label, chosen in by_age.items():
        assert found[f"tokens{label}"] == chosen.sum()
        assert found[f"mismatch_mean{label}"] == pytest.approx(np.abs(gap[chosen]).mean())
        assert found[f"mismatch_max{label}"] == pytest.approx(np.abs(gap[chosen]).max())
        assert found[f"mismatch_k3{label}"] == pytest.approx((w - 1 - gap)[chosen].mean())
        assert found[f"mismatch_chi2{label}"] == pytest.approx((w[chosen] ** 2).mean() - 1)
        expected = w[chosen].sum() ** 2 / (w[chosen] ** 2).sum() / chosen.sum()
        assert found[f"mismatch_ess{label}"] == pytest.approx(expected)
        assert f"clip_low{label}" in found and f"ratio_p99{label}" in found
    assert "mismatch_mean_by_age/4-7" not in found


# --- what is refused ----------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"learner.old_logprobs": "rollout", "learner.correction": "tis"}, "the loss's own ratio corrects already"),
    ({"learner.correction": "tis", "sampling.top_p": 0.9}, r"learner\.correction = tis compares .*top_p: 1"),
    ({"learner.correction": "icepop", "sampling.top_k": 20}, r"learner\.correction = icepop compares"),
    ({"learner.old_logprobs": "interpolate", "sampling.top_p": 0.9}, r"learner\.old_logprobs = interpolate compares"),
    ({"learner.masks": ["opsm"], "sampling.top_k": 5}, "opsm compares"),
    ({"learner.loss": "reinforce", "learner.old_logprobs": "average"}, "loss = reinforce has none"),
    ({"learner.correction": {"kind": "mis", "low": 1.0, "high": 1.0}}, "set them apart"),
    ({"learner.correction": "tsi"}, "tis"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(changes) for changes, _ in REFUSED])
def test_what_does_not_go_together_is_refused_before_anything_starts(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(COLD_START, [f"{key}={to_text(value)}" for key, value in changes.items()])


def to_text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {each}" for key, each in value.items()) + "}"
    return "[" + ", ".join(value) + "]" if isinstance(value, list) else str(value)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({}, "ratios start at the policy of now"),
        ({"old_logprobs": "average"}, "another policy than the one that sampled"),
        ({"loss": "reinforce"}, "does not clip"),
        ({"loss": "r2vpo", "old_logprobs": "rollout"}, "does not clip"),
        ({"loss": "reinforce", "correction": "tis"}, None),
        ({"correction": "decoupled_ppo"}, None),
        ({"old_logprobs": "average", "correction": "decoupled_ppo"}, None),
        ({"old_logprobs": "rollout"}, None),
        ({"old_logprobs": "interpolate"}, None),
    ],
)
def test_stale_groups_need_a_loss_that_knows_of_them(options: dict[str, Any], refused: str | None) -> None:
    learner = LearnerConfig.model_validate(options)
    refuse_uncorrected_staleness(learner, 0)
    check: Callable[[], None] = lambda: refuse_uncorrected_staleness(learner, 2)  # noqa: E731
    if refused is None:
        check()
    else:
        with pytest.raises(ValueError, match=rf"max_staleness = 2 .*{refused}.* set learner\.correction"):
            check()

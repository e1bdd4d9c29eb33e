"""Loss, log-probs, metrics and schedule against float64 numpy and finite differences."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from deploy.config.recipe import models_in
from learner.batching.pack import empty_batch
from learner.batching.packed import PackedBatch
from learner.config import KlConfig, LearnerConfig
from learner.corrections import NoCorrection
from learner.losses import LossInputs, Measured, PpoClip
from learner.losses.histogram import EDGES, QUANTILES
from learner.losses.kl import KlEstimator, kl_estimate, kl_k3
from learner.losses.metrics import MISMATCH_BINS, MISMATCH_EDGES, Tally
from learner.losses.objective import Objective
from learner.model.logits import LogitTransform
from learner.model.logprobs import token_logprobs

pytestmark = pytest.mark.unit


def numpy_ppo(logprobs: np.ndarray, old: np.ndarray, advantages: np.ndarray, low: float, high: float) -> np.ndarray:
    losses = []
    for new_lp, old_lp, advantage in zip(logprobs, old, advantages, strict=True):
        ratio = math.exp(new_lp - old_lp)
        losses.append(-min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage))
    return np.array(losses)


def draw(seed: int, n: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    old = -rng.exponential(size=n)
    logprobs = old + 0.4 * rng.normal(size=n)
    reference = old + 0.5 * rng.normal(size=n)
    weights = rng.random(n)
    return logprobs, old, reference, rng.normal(size=n), rng.random(n), weights / weights.sum()


def batch_of(
    old: np.ndarray,
    reference: np.ndarray | None,
    rollout: np.ndarray,
    advantages: np.ndarray,
    weights: np.ndarray,
    sample: np.ndarray | None = None,
) -> PackedBatch:
    """N tokens in float64, of one sample where none are given; those of weight 0 are outside the mask."""
    numbers = torch.zeros(len(old), dtype=torch.int64)
    return replace(
        empty_batch(),
        sample=numbers if sample is None else torch.from_numpy(sample),
        samples=1 if sample is None else int(sample.max()) + 1,
        group=numbers,
        lag=numbers,
        mask=torch.from_numpy(weights > 0),
        weights=torch.from_numpy(weights),
        advantages=torch.from_numpy(advantages),
        rollout_logprobs=torch.from_numpy(rollout),
        old_logprobs=torch.from_numpy(old),
        reference_logprobs=None if reference is None else torch.from_numpy(reference),
    )


def inputs_of(logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor) -> LossInputs:
    numbers = torch.zeros(len(old), dtype=torch.int64)
    mask = torch.ones(len(old), dtype=torch.bool)
    return LossInputs(logprobs, old, old, None, old, advantages, mask, numbers, numbers, numbers, 1, 1)


def central_differences(function: object, x: np.ndarray, h: float = 1e-6) -> np.ndarray:
    gradient = np.zeros_like(x)
    for i in range(x.size):
        up, down = x.copy(), x.copy()
        up.flat[i] += h
        down.flat[i] -= h
        gradient.flat[i] = (function(up) - function(down)) / (2 * h)  # type: ignore[operator]
    return gradient


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (0.05, 1.0)])
def test_ppo_clip_matches_numpy(low: float, high: float) -> None:
    logprobs, old, _, advantages, _, _ = draw(0)
    found, _ = PpoClip(clip_low=low, clip_high=high)(inputs_of(*map(torch.from_numpy, (logprobs, old, advantages))))
    np.testing.assert_allclose(found.numpy(), numpy_ppo(logprobs, old, advantages, low, high), rtol=1e-12)


def test_on_policy_gradient_of_ppo_clip_is_minus_the_advantage() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64)
    losses, _ = PpoClip()(inputs_of(logprobs, logprobs.detach(), advantages))
    losses.sum().backward()
    np.testing.assert_allclose(logprobs.grad.numpy(), -advantages.numpy())


@pytest.mark.parametrize("far", [100.0, -100.0, 1e4])
def test_a_log_ratio_far_off_is_a_number_and_so_is_its_gradient(far: float) -> None:
    """exp(100) overflows float32, and infinity times an advantage of 0 is no number."""
    logprobs = torch.tensor([far, far, far], requires_grad=True)
    losses, measured = PpoClip()(inputs_of(logprobs, torch.zeros(3), torch.tensor([0.0, 1.0, -1.0])))
    losses.sum().backward()
    assert bool(torch.isfinite(losses).all()) and bool(torch.isfinite(logprobs.grad).all())
    assert losses[0] == 0.0 and all(bool(torch.isfinite(value).all()) for value in measured.means.values())


def test_k3_is_zero_at_equality_positive_elsewhere_and_bounded() -> None:
    difference = torch.linspace(-50, 50, 1001, dtype=torch.float64)
    value = kl_k3(difference, torch.zeros_like(difference))
    # exp(-d) + d - 1 loses what rounding to 1 loses, by how many bits depends on the processor's exp; linspace's middle is 0 or near it.
    rounding = 4 * np.finfo(np.float64).eps
    assert abs(float(value[500])) <= rounding and bool((value >= -rounding).all())
    assert float(value.max()) == 10.0, "a bound, not a computed number"
    assert float(kl_k3(torch.tensor([-1.5]), torch.tensor([-1.5]))) == 0.0, "exp(0) is 1 on every processor"
    near = difference[495:505].numpy()
    np.testing.assert_allclose(value[495:505].numpy(), np.exp(-near) + near - 1, rtol=1e-9, atol=rounding)


def test_k3_is_unbiased_for_the_exact_kl() -> None:
    rng = np.random.default_rng(1)
    logits, other = rng.normal(size=6), rng.normal(size=6)
    p, q = np.exp(logits) / np.exp(logits).sum(), np.exp(other) / np.exp(other).sum()
    values = kl_k3(torch.from_numpy(np.log(p)), torch.from_numpy(np.log(q))).numpy()
    assert float((p * values).sum()) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-12)


KL_ORACLES = {
    "k1": (lambda d: d, lambda d: np.ones_like(d)),
    "k2": (lambda d: d**2 / 2, lambda d: d),
    "k3": (lambda d: np.exp(-d) + d - 1, lambda d: 1 - np.exp(-d)),
    "k3_k2": (lambda d: np.exp(-d) + d - 1, lambda d: d),
}
"""Value and gradient of each estimator by d = log pi - log pi_ref."""


@pytest.mark.parametrize("estimator", KL_ORACLES)
def test_kl_estimators_match_numpy_in_value_and_gradient(estimator: KlEstimator) -> None:
    logprobs, _, reference, *_ = draw(7)
    x = torch.from_numpy(logprobs).requires_grad_()
    found = kl_estimate(x, torch.from_numpy(reference), estimator)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    value, slope = KL_ORACLES[estimator]
    np.testing.assert_allclose(found.detach(), value(logprobs - reference), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient, slope(logprobs - reference), rtol=1e-9, atol=1e-12)
    assert kl_estimate(x, x.detach(), estimator).abs().max() < 1e-15
    far = kl_estimate(torch.tensor([400.0, -400.0]), torch.zeros(2), estimator)
    assert bool(torch.isfinite(far).all())


@pytest.mark.parametrize(("estimator", "right"), [("k1", False), ("k2", True), ("k3", False), ("k3_k2", True)])
def test_k2_alone_has_the_gradient_of_the_exact_kl(estimator: KlEstimator, right: bool) -> None:
    """On a distribution of six tokens, whose expected gradient is a finite sum."""
    rng = np.random.default_rng(1)
    logits, reference = (torch.from_numpy(rng.normal(size=6)) for _ in range(2))
    logits.requires_grad_()
    logprobs, other = logits.log_softmax(0), reference.log_softmax(0)
    exact = (logprobs.exp() * (logprobs - other)).sum()
    estimated = (logprobs.exp().detach() * kl_estimate(logprobs, other, estimator)).sum()
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (exact, estimated)]
    assert torch.allclose(*gradients, rtol=1e-9) is right
    if estimator == "k1":
        assert gradients[1].abs().max() < 1e-15, "its mean is 0"
        in_reward = (logprobs.exp().detach() * (logprobs - other).detach() * logprobs).sum()
        assert torch.allclose(gradients[0], torch.autograd.grad(in_reward, logits)[0], rtol=1e-9)


@pytest.mark.parametrize("loss", ["ppo_clip", "reinforce"])
def test_a_kl_in_the_reward_s_place_is_taken_off_the_advantages(loss: str) -> None:
    logprobs, old, reference, advantages, entropy, weights = draw(9)
    config = LearnerConfig.model_validate({"loss": loss, "kl": {"coef": 0.3, "place": "reward"}})
    shaped = advantages - 0.3 * (old - reference)
    found = []
    for each, given in ((config, advantages), (LearnerConfig.model_validate({"loss": loss}), shaped)):
        objective = Objective(each)
        x = torch.from_numpy(logprobs).requires_grad_()
        value, _ = objective(batch_of(old, reference, old, given, weights), x, torch.from_numpy(entropy))
        found.append((value.item(), torch.autograd.grad(value, x)[0].numpy()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-12)
    assert Objective(config).needs >= {"old", "reference"}


def test_the_reward_s_place_takes_k1_and_a_luspo_one_aggregation() -> None:
    kl = LearnerConfig.model_validate({"kl": {"coef": 0.1, "place": "reward"}}).kl
    assert kl.estimator == "k1" and KlConfig.model_validate(kl.model_dump()) == kl
    with pytest.raises(
        ValueError, match=r"estimator = k3 has not the KL's gradient with place = reward; take k1 there"
    ):
        LearnerConfig.model_validate({"kl": {"place": "reward", "estimator": "k3"}})
    with pytest.raises(ValueError, match="loss = luspo multiplies by the sample's length"):
        LearnerConfig.model_validate({"loss": "luspo", "aggregation": "token_mean"})
    assert LearnerConfig.model_validate({"loss": "luspo"}).loss.kind == "luspo"


def test_the_objective_and_its_gradient_match_numpy() -> None:
    config = LearnerConfig(loss=PpoClip(clip_low=0.2, clip_high=0.28), entropy_coef=0.01, kl=KlConfig(coef=0.05))
    logprobs, old, reference, advantages, entropy, weights = draw(2)

    def oracle(x: np.ndarray) -> float:
        d = x - reference
        losses = numpy_ppo(x, old, advantages, 0.2, 0.28) + 0.05 * (np.exp(-d) + d - 1) - 0.01 * entropy
        return float((weights * losses).sum())

    x = torch.from_numpy(logprobs.copy()).requires_grad_()
    objective = Objective(config)
    loss, _ = objective(batch_of(old, reference, old, advantages, weights), x, torch.from_numpy(entropy))
    loss.backward()
    assert loss.item() == pytest.approx(oracle(logprobs), rel=1e-12)
    np.testing.assert_allclose(x.grad.numpy(), central_differences(oracle, logprobs), atol=1e-8)
    assert objective.needs == {"old", "reference", "entropy"}
    assert Objective(LearnerConfig()).needs == {"old"}


class HalvesBad(NoCorrection):
    """Halves the weight of tokens with a negative advantage."""

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        weights = torch.where(inputs.advantages < 0, 0.5, 1.0)
        return weights, Measured(means={"halved": (weights < 1).float()}, maxima={"lag_max": inputs.lag})


def test_a_correction_weighs_the_loss_and_reports_under_its_own_names() -> None:
    logprobs, old, _, advantages, entropy, weights = draw(6)
    config = LearnerConfig().model_copy(update={"correction": HalvesBad()})
    objective = Objective(config)
    arguments = (torch.from_numpy(logprobs), torch.from_numpy(entropy))
    batch = batch_of(old, None, old, advantages, weights)
    loss, measured = objective(batch, *arguments)
    halved = np.where(advantages < 0, 0.5, 1.0) * numpy_ppo(logprobs, old, advantages, 0.2, 0.2)
    assert loss.item() == pytest.approx(float((weights * halved).sum()), rel=1e-12)
    assert "halved" in objective.names.means and "lag_max" in objective.names.maxima
    with pytest.raises(ValueError, match="all ranks expect"):
        Tally(Objective(LearnerConfig()).names).add([loss], [measured], [batch])


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("with_bias", [False, True])
def test_token_logprobs_and_entropy_match_numpy_with_gradients(chunk: int, with_bias: bool) -> None:
    rng = np.random.default_rng(3)
    hidden, weight, bias = rng.normal(size=(7, 4)), rng.normal(size=(11, 4)), rng.normal(size=11) * with_bias
    targets, temperatures = rng.integers(0, 11, 7), rng.uniform(0.5, 1.5, 7)
    mix = rng.normal(size=(2, 7))

    def oracle(hidden: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = (hidden @ weight.T + bias) / temperatures[:, None]
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logs[np.arange(7), targets], -(np.exp(logs) * logs).sum(axis=1)

    def scalar(hidden: np.ndarray, weight: np.ndarray) -> float:
        return float(sum((m * values).sum() for m, values in zip(mix, oracle(hidden, weight), strict=True)))

    h = torch.tensor(hidden, dtype=torch.float32, requires_grad=True)
    w = torch.tensor(weight, dtype=torch.float32, requires_grad=True)
    b = torch.tensor(bias, dtype=torch.float32) if with_bias else None
    t = torch.tensor(temperatures, dtype=torch.float32)
    logprobs, entropies = token_logprobs(h, w, b, torch.from_numpy(targets), t, chunk, entropy_grad=True)
    expected = oracle(hidden, weight)
    np.testing.assert_allclose(logprobs.detach(), expected[0], atol=1e-5)
    np.testing.assert_allclose(entropies.detach(), expected[1], atol=1e-5)
    m = torch.tensor(mix, dtype=torch.float32)
    (m[0] * logprobs + m[1] * entropies).sum().backward()
    np.testing.assert_allclose(h.grad, central_differences(lambda x: scalar(x, weight), hidden), atol=1e-5)
    np.testing.assert_allclose(w.grad, central_differences(lambda x: scalar(hidden, x), weight), atol=1e-5)


def test_entropy_carries_no_gradient_unless_it_is_in_the_loss() -> None:
    weight = torch.randn(5, 3, requires_grad=True)
    arguments = (torch.randn(4, 3), weight, None, torch.tensor([0, 1, 2, 3]), torch.ones(4), 2)
    assert not token_logprobs(*arguments, entropy_grad=False)[1].requires_grad
    assert token_logprobs(*arguments, entropy_grad=True)[1].requires_grad


@pytest.mark.parametrize("transform", [LogitTransform(scale=0.3), LogitTransform(scale=2.0, cap=1.5)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_logits_are_transformed_before_the_temperature(transform: LogitTransform, with_bias: bool) -> None:
    rng = np.random.default_rng(3)
    hidden, weight, bias = rng.normal(size=(7, 4)), rng.normal(size=(11, 4)), rng.normal(size=11) * with_bias
    targets, temperatures = rng.integers(0, 11, 7), rng.uniform(0.5, 1.5, 7)
    raw = (hidden @ weight.T + bias) * transform.scale
    logits = (raw if transform.cap is None else transform.cap * np.tanh(raw / transform.cap)) / temperatures[:, None]
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    h, w, t = (torch.tensor(value, dtype=torch.float32) for value in (hidden, weight, temperatures))
    b = torch.tensor(bias, dtype=torch.float32) if with_bias else None
    found, entropies = token_logprobs(h, w, b, torch.from_numpy(targets), t, 3, False, transform)
    np.testing.assert_allclose(found, logs[np.arange(7), targets], atol=1e-5)
    np.testing.assert_allclose(entropies, -(np.exp(logs) * logs).sum(axis=1), atol=1e-5)


@pytest.mark.parametrize("truncated", [False, True])
def test_metrics_match_numpy_and_ignore_tokens_outside_the_mask(truncated: bool) -> None:
    config = LearnerConfig(loss=PpoClip(clip_low=0.2, clip_high=0.3), kl=KlConfig(coef=0.1))
    logprobs, old, reference, advantages, entropy, weights = draw(4)
    rollout = old + 10.0 ** np.random.default_rng(5).uniform(-6, 0.5, size=old.size)
    weights[:10] = 0.0
    logprobs[0] = 5.0
    batch = batch_of(old, reference, rollout, advantages, weights)
    objective = Objective(config, truncated_sampler=truncated)
    loss, measured = objective(batch, torch.from_numpy(logprobs), torch.from_numpy(entropy))
    tally = Tally(objective.names)
    tally.add([loss], [measured], [batch])
    named = tally.means()
    kept = slice(10, None)
    ratio = np.exp(logprobs - old)[kept]
    gap = (old - rollout)[kept]
    drift = (logprobs - reference)[kept]
    expected = {
        "tokens": 40.0,
        "entropy": entropy[kept].mean(),
        "clip_low": ((ratio < 0.8) & (advantages[kept] < 0)).mean(),
        "clip_high": ((ratio > 1.3) & (advantages[kept] > 0)).mean(),
        "approx_kl": (ratio - 1 - np.log(ratio)).mean(),
        "reference_kl": (np.exp(-drift) + drift - 1).mean(),
        "mismatch_k3": (np.exp(gap) - 1 - gap).mean(),
        "mismatch_mean": np.abs(gap).mean(),
        "mismatch_chi2": np.exp(2 * gap).mean() - 1,
        "mismatch_ess": np.exp(gap).sum() ** 2 / np.exp(2 * gap).sum() / gap.size,
        "ratio_max": ratio.max(),
        "mismatch_max": np.abs(gap).max(),
    }
    edges = [0.0, *MISMATCH_EDGES, np.inf]
    shares = [((low <= np.abs(gap)) & (np.abs(gap) < high)).mean() for low, high in pairwise(edges)]
    assert all(shares)
    expected |= dict(zip(MISMATCH_BINS, shares, strict=True))
    if truncated:  # other supports are no mismatch, and nothing that watches for one may see them
        expected = {name.replace("mismatch", "truncation"): value for name, value in expected.items()}
    spreads = {name: np.exp(values) for name, values in (("ratio", (logprobs - old)[kept]), ("mismatch_ratio", gap))}
    for name, ratios in spreads.items():
        reported = name.replace("mismatch", "truncation") if truncated else name
        for label, share in QUANTILES.items():
            found, exact = np.log(named.pop(f"{reported}_{label}")), np.log(np.quantile(ratios, share, method="lower"))
            low, high = (EDGES[np.searchsorted(EDGES, exact) + side] for side in (-1, 0))
            assert low <= found <= high, "exact to a bin"
    assert set(named) == set(expected) and expected["clip_low"] > 0 and expected["clip_high"] > 0
    for name, value in expected.items():
        assert named[name] == pytest.approx(value, rel=1e-6), name


def test_metrics_of_nothing_but_padding_are_zero() -> None:
    objective = Objective(LearnerConfig())
    loss, measured = objective(empty_batch(), torch.ones(1), torch.ones(1))
    tally = Tally(objective.names)
    tally.add([loss], [measured], [empty_batch()])
    assert not tally.sums.any() and not tally.maxima.any()


def test_the_loss_s_options_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="ppo_clip"):
        LearnerConfig.model_validate({"loss": "gspo_of_another_time"})
    assert LearnerConfig.model_validate({"loss": "ppo_clip"}) == LearnerConfig()
    scalars = [name for name, field in LearnerConfig.model_fields.items() if not models_in(field.annotation)]
    assert len(scalars) <= 15

"""Loss, log-probs, metrics and schedule against float64 numpy and finite differences."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from learner.config import LossConfig, OptimizerConfig
from learner.losses.metrics import MISMATCH_BINS, MISMATCH_EDGES, SUMS, token_means, token_metrics
from learner.losses.ppo_clip import kl_k3, policy_loss, ppo_clip
from learner.model.logprobs import token_logprobs
from learner.optim.optimizer import Optimizer, lr_share

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
    found = ppo_clip(*map(torch.from_numpy, (logprobs, old, advantages)), low, high)
    np.testing.assert_allclose(found.numpy(), numpy_ppo(logprobs, old, advantages, low, high), rtol=1e-12)


def test_on_policy_gradient_of_ppo_clip_is_minus_the_advantage() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64)
    ppo_clip(logprobs, logprobs.detach(), advantages, 0.2, 0.2).sum().backward()
    np.testing.assert_allclose(logprobs.grad.numpy(), -advantages.numpy())


def test_k3_is_zero_at_equality_positive_elsewhere_and_bounded() -> None:
    difference = torch.linspace(-50, 50, 1001, dtype=torch.float64)
    value = kl_k3(difference, torch.zeros_like(difference))
    assert value[500] == 0 and bool((value >= 0).all()) and float(value.max()) == 10.0
    near = difference[495:505].numpy()
    np.testing.assert_allclose(value[495:505].numpy(), np.exp(-near) + near - 1)


def test_k3_is_unbiased_for_the_exact_kl() -> None:
    rng = np.random.default_rng(1)
    logits, other = rng.normal(size=6), rng.normal(size=6)
    p, q = np.exp(logits) / np.exp(logits).sum(), np.exp(other) / np.exp(other).sum()
    values = kl_k3(torch.from_numpy(np.log(p)), torch.from_numpy(np.log(q))).numpy()
    assert float((p * values).sum()) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-12)


def test_policy_loss_and_its_gradient_match_numpy() -> None:
    config = LossConfig(clip_low=0.2, clip_high=0.28, entropy_coef=0.01, kl_coef=0.05)
    logprobs, old, reference, advantages, entropy, weights = draw(2)

    def oracle(x: np.ndarray) -> float:
        d = x - reference
        losses = numpy_ppo(x, old, advantages, 0.2, 0.28) + 0.05 * (np.exp(-d) + d - 1) - 0.01 * entropy
        return float((weights * losses).sum())

    x = torch.from_numpy(logprobs.copy()).requires_grad_()
    tensors = [torch.from_numpy(a) for a in (entropy, old, reference, advantages, weights)]
    loss = policy_loss(x, *tensors, config)
    loss.backward()
    assert loss.item() == pytest.approx(oracle(logprobs), rel=1e-12)
    np.testing.assert_allclose(x.grad.numpy(), central_differences(oracle, logprobs), atol=1e-8)


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


def test_metrics_match_numpy_and_ignore_tokens_of_weight_zero() -> None:
    config = LossConfig(clip_low=0.2, clip_high=0.3, kl_coef=0.1)
    logprobs, old, reference, advantages, entropy, weights = draw(4)
    rollout = old + 10.0 ** np.random.default_rng(5).uniform(-6, 0.5, size=old.size)
    weights[:10] = 0.0
    logprobs[0] = 5.0
    tensors = [torch.from_numpy(a) for a in (logprobs, entropy, old, reference, rollout, advantages, weights)]
    sums, maxima = token_metrics(*tensors, config)
    named = token_means(torch.cat([torch.tensor([0.25], dtype=torch.float64), sums]), maxima)
    kept = slice(10, None)
    ratio = np.exp(logprobs - old)[kept]
    gap = (old - rollout)[kept]
    drift = (logprobs - reference)[kept]
    expected = {
        "loss": 0.25,
        "tokens": 40.0,
        "entropy": entropy[kept].mean(),
        "clip_low": ((ratio < 0.8) & (advantages[kept] < 0)).mean(),
        "clip_high": ((ratio > 1.3) & (advantages[kept] > 0)).mean(),
        "approx_kl": (ratio - 1 - np.log(ratio)).mean(),
        "reference_kl": (np.exp(-drift) + drift - 1).mean(),
        "mismatch_k3": (np.exp(gap) - 1 - gap).mean(),
        "ratio_max": ratio.max(),
        "mismatch_max": np.abs(gap).max(),
    }
    edges = [0.0, *MISMATCH_EDGES, np.inf]
    shares = [((low <= np.abs(gap)) & (np.abs(gap) < high)).mean() for low, high in pairwise(edges)]
    assert all(shares)
    expected |= dict(zip(MISMATCH_BINS, shares, strict=True))
    assert set(named) == set(expected) and expected["clip_low"] > 0 and expected["clip_high"] > 0
    for name, value in expected.items():
        assert named[name] == pytest.approx(value, rel=1e-6), name
    assert len(sums) == len(SUMS) - 1


def test_metrics_of_nothing_but_padding_are_zero() -> None:
    one, zero = torch.ones(3), torch.zeros(3)
    sums, maxima = token_metrics(one, one, one, None, one, one, zero, LossConfig())
    assert not sums.any() and not maxima.any()


def test_schedule_warms_up_then_follows_half_a_cosine() -> None:
    config = OptimizerConfig(warmup_steps=4, final_lr_share=0.1)
    assert [lr_share(i, 12, config) for i in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_share(4, 12, config) == 1.0
    assert lr_share(8, 12, config) == pytest.approx(0.55)
    assert lr_share(12, 12, config) == lr_share(99, 12, config) == pytest.approx(0.1)


def test_optimizer_matches_adamw_written_out() -> None:
    config = OptimizerConfig(lr=0.1, weight_decay=0.01, betas=(0.8, 0.9), max_grad_norm=0.5, warmup_steps=2)
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = Optimizer([parameter], 5, config)
    x, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for k in range(5):
        gradient = np.array([3.0, 4.0]) * (k + 1)
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        assert optimizer.step() == pytest.approx(5.0 * (k + 1))
        gradient = gradient * min(1.0, 0.5 / (5.0 * (k + 1)))
        lr = 0.1 * lr_share(k, 5, config)
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        x = x - lr * 0.01 * x
        x = x - lr * (m / (1 - 0.8 ** (k + 1))) / (np.sqrt(v / (1 - 0.9 ** (k + 1))) + 1e-8)
        np.testing.assert_allclose(parameter.detach().numpy(), x, rtol=1e-5)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = Optimizer([parameter], 5, OptimizerConfig())
    parameter.grad = torch.tensor([float("nan")])
    with pytest.raises(FloatingPointError, match="diverged"):
        optimizer.step()
    assert parameter.item() == 1.0 and optimizer.updates == 0

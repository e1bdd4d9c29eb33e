"""Estimates of the KL divergence from sampled tokens: KL(pi || reference) from d = log pi - log pi_ref of what pi sampled.

| | value | its gradient, as a loss |
|---|---|---|
| k1 | d | has mean 0: of no use as a loss, and the right one in the reward's place |
| k2 | d^2 / 2 | is the KL's, on tokens that pi sampled |
| k3 | exp(-d) + d - 1 | is biased (that of the reverse divergence's), and of low variance |
| k3_k2 | k3's | k2's |

Source: Schulman, "Approximating KL divergence" (2020); k3 from GRPO (arXiv 2402.03300), Eq. 4; k3_k2 is verl's "k3+".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from learner.losses.protocol import log_ratio

if TYPE_CHECKING:
    import torch

KlEstimator = Literal["k1", "k2", "k3", "k3_k2"]

KL_LIMIT = 10.0


def kl_estimate(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, estimator: KlEstimator) -> torch.Tensor:
    """[N] nats per token, of [N] log-probs; only `logprobs` may carry a gradient. Log-ratios are limited to +-20."""
    if estimator == "k3":
        return kl_k3(logprobs, reference_logprobs)
    difference = log_ratio(logprobs, reference_logprobs)
    if estimator == "k1":
        return difference
    halved_square = difference.square() / 2.0
    if estimator == "k2":
        return halved_square
    return kl_k3(logprobs.detach(), reference_logprobs) + halved_square - halved_square.detach()


def kl_k3(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """Per-token k3 estimate of KL(pi || reference) from tokens sampled by pi: exp(-d) + d - 1, d = lp - lp_ref.

    All tensors [N]. Returns [N] in [0, 10]; d is limited to +-20 so that one token cannot overflow. Unbiased as a value,
    biased as a gradient.
    """
    difference = log_ratio(logprobs, reference_logprobs)
    return ((-difference).exp() + difference - 1.0).clamp(max=KL_LIMIT)

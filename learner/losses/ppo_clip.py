"""The policy loss as pure functions of per-token tensors. Shapes: [N] completion tokens, log-probs in nats."""

import torch

from learner.config import LossConfig

LOG_RATIO_LIMIT = 20.0
KL_LIMIT = 10.0


def ppo_clip(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float
) -> torch.Tensor:
    """Per-token PPO-clip loss, -min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A) with rho = pi / pi_old.

    All tensors [N]; only `logprobs` carries a gradient. Returns [N]. Source: PPO (arXiv 1707.06347), Eq. 7; separate
    bounds from DAPO (arXiv 2503.14476), Eq. 10.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = torch.clamp(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def kl_k3(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """Per-token k3 estimate of KL(pi || reference) from tokens sampled by pi: exp(-d) + d - 1, d = lp - lp_ref.

    All tensors [N]. Returns [N] in [0, 10]; d is limited to +-20 so that one token cannot overflow. Unbiased as a value,
    biased as a gradient. Source: Schulman, "Approximating KL divergence" (2020); GRPO (arXiv 2402.03300), Eq. 4.
    """
    difference = torch.clamp(logprobs - reference_logprobs, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.clamp(torch.exp(-difference) + difference - 1.0, max=KL_LIMIT)


def policy_loss(
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    old_logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    config: LossConfig,
) -> torch.Tensor:
    """Scalar sum(weights * (PPO-clip + kl_coef * k3 - entropy_coef * entropy)). Source: BV-Blend (arXiv 2606.28707), Eq. 13.

    All tensors [N]. The weights hold the whole aggregation (mean over tokens, completions, prompts of the global batch), so
    sums over microbatches and ranks are the loss of the batch.
    """
    losses = ppo_clip(logprobs, old_logprobs, advantages, config.clip_low, config.clip_high)
    if reference_logprobs is not None:
        losses = losses + config.kl_coef * kl_k3(logprobs, reference_logprobs)
    if config.entropy_coef > 0:
        losses = losses - config.entropy_coef * entropy
    return (weights * losses).sum()

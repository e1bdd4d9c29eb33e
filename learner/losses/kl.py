"""Estimates of the KL divergence from sampled tokens."""

import torch

from learner.losses.protocol import log_ratio

KL_LIMIT = 10.0


def kl_k3(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """Per-token k3 estimate of KL(pi || reference) from tokens sampled by pi: exp(-d) + d - 1, d = lp - lp_ref.

    All tensors [N]. Returns [N] in [0, 10]; d is limited to +-20 so that one token cannot overflow. Unbiased as a value,
    biased as a gradient. Source: Schulman, "Approximating KL divergence" (2020); GRPO (arXiv 2402.03300), Eq. 4.
    """
    difference = log_ratio(logprobs, reference_logprobs)
    return torch.clamp(torch.exp(-difference) + difference - 1.0, max=KL_LIMIT)

"""What tokens of one sample have in common: sums, means and lengths, given back to each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.losses.protocol import LossInputs, log_ratio

if TYPE_CHECKING:
    import torch


def sample_lengths(inputs: LossInputs) -> torch.Tensor:
    """[N] how many trained tokens the token's sample has; 1 where it has none, so that it can divide."""
    return sample_sums(inputs.mask.to(inputs.logprobs.dtype), inputs).clamp(min=1.0)


def sample_sums(values: torch.Tensor, inputs: LossInputs) -> torch.Tensor:
    """[N] sum of `values` [N] over the trained tokens of the token's sample."""
    counted = values.masked_fill(~inputs.mask, 0.0)
    return counted.new_zeros(inputs.samples).index_add(0, inputs.sample, counted)[inputs.sample]


def sample_means(values: torch.Tensor, inputs: LossInputs) -> torch.Tensor:
    """[N] mean of `values` [N] over the trained tokens of the token's sample; 0 where it has none."""
    return sample_sums(values, inputs) / sample_lengths(inputs)


def sequence_ratio(inputs: LossInputs) -> torch.Tensor:
    """[N] geometric mean of pi / pi_old over the token's sample, as a value; each token holds a gradient of its own alone.

    s_t = sg(s) * pi_t / sg(pi_t), s = exp(mean of the log-ratios, each limited to +-20). Averaged over its sample this has the
    gradient of s, and a token that is masked or weighed takes only its own part of it along. Source: GSPO (arXiv 2507.18071),
    Eq. 7 and 14.
    """
    ratio = sample_means(log_ratio(inputs.logprobs.detach(), inputs.old), inputs).exp()
    return own_gradient(ratio, inputs.logprobs)


def own_gradient(value: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
    """sg(value) * exp(logs - sg(logs)): `value`, whose derivative by `logs` is itself. All [N]."""
    return value.detach() * (logs - logs.detach()).exp()

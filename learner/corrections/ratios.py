"""How far the sampler's policy is from the one that ratios start at, token by token or over whole samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from learner.losses.protocol import LOG_RATIO_LIMIT, LossInputs, Measured
from learner.losses.sequences import sample_means, sample_sums

if TYPE_CHECKING:
    import torch

Level = Literal["token", "sequence", "geometric"]
"""Of a ratio: the token's own; the product over its sample; or the geometric mean over its sample."""


def sampler_ratio(inputs: LossInputs, level: Level) -> torch.Tensor:
    """[N] pi_old / pi_rollout without a gradient, whose log is limited to +-20; of a sample every token has the same.

    It holds both what the engine computes otherwise than the learner and, for a token of an older version, what the policy has
    moved since.
    """
    difference = inputs.old - inputs.rollout
    if level == "sequence":
        difference = sample_sums(difference, inputs)
    elif level == "geometric":
        difference = sample_means(difference, inputs)
    return difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().detach()


def kept_inside(ratio: torch.Tensor, low: float, high: float) -> tuple[torch.Tensor, Measured]:
    """([N] the ratio where it lies in [low, high] and 0 elsewhere, what it came to)."""
    kept = (ratio >= low) & (ratio <= high)
    weights = ratio.masked_fill(~kept, 0.0)
    return weights, Measured({"correction_weight": weights, "correction_left_out": (~kept).to(ratio.dtype)})

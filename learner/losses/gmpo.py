"""GMPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from learner.losses.clipping import ClipBounds, removed_shares
from learner.losses.protocol import LossInputs, Measured, log_ratio
from learner.losses.sequences import own_gradient, sample_means

if TYPE_CHECKING:
    import torch


class Gmpo(ClipBounds):
    """Geometric mean of a sample's ratios, each clipped before: one outlier clips itself, not its sample."""

    kind: Literal["gmpo"] = "gmpo"
    clip_low: float = Field(0.4, gt=0)
    """Lower clip of a token's log-ratio is minus this, in nats."""
    clip_high: float = Field(0.4, gt=0)
    """Upper clip of a token's log-ratio is this, in nats."""

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """-A * exp(mean over the sample of x), x = sign(A) * min(sign(A) * d, sign(A) * clip(d)), d = log(pi / pi_old).

        As a mean over the sample's tokens, each with its own part of the gradient alone. Source: GMPO (arXiv 2507.20673), Eq. 4.
        """
        difference = log_ratio(inputs.logprobs, inputs.old)
        bounded = difference.clamp(-self.clip_low, self.clip_high)
        # min of the two for A > 0, max for A < 0; without an advantage there is nothing to clip.
        kept = difference.minimum(bounded).where(inputs.advantages > 0, difference.maximum(bounded))
        kept = kept.where(inputs.advantages != 0, 0.0)
        ratio = sample_means(kept.detach(), inputs).exp()
        removed = removed_shares(difference.detach(), -self.clip_low, self.clip_high, inputs.advantages)
        return -inputs.advantages * own_gradient(ratio, kept), removed

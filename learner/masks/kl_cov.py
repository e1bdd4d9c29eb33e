"""KL-Cov."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from learner.losses.protocol import LossInputs, Measured, Need, log_ratio
from learner.masks.covariance import covariances, of_the_update
from learner.masks.protocol import Mask, Masked, Numbers

if TYPE_CHECKING:
    import torch


class KlCov(Mask):
    """Holds the few tokens that lower the entropy most to what they were before the update; leaves none out."""

    kind: Literal["kl_cov"] = "kl_cov"
    share: float = Field(0.002, gt=0, le=1)
    """Share of an update's tokens to hold, those of the largest covariance; one at least."""
    penalty: float = Field(1.0, gt=0)
    """Weight of |log(pi / pi_old)| in the loss of such a token."""
    needs: ClassVar[frozenset[Need]] = frozenset({"old"})
    of_the_update: ClassVar[bool] = True

    def statistics(self, advantages: Numbers, logprobs: Numbers) -> Numbers:
        """Both means, and the least covariance of tokens that are held."""
        mean_advantage, mean_logprob, each = of_the_update(advantages, logprobs)
        count = max(int(self.share * len(each)), 1)
        least = float(np.partition(each, -count)[-count]) if len(each) else 0.0
        return np.array([mean_advantage, mean_logprob, least])

    def __call__(self, inputs: LossInputs, statistics: torch.Tensor) -> Masked:
        """Weight 1 for all; penalty * |log(pi / pi_old)| for tokens of the largest covariance of log-prob and advantage.

        Source: KL-Cov of "The Entropy Mechanism of Reinforcement Learning" (arXiv 2505.22617), Eq. 13-14.
        """
        held = covariances(inputs, statistics) >= statistics[2].to(inputs.advantages)
        distance = log_ratio(inputs.logprobs, inputs.old).abs()
        penalties = (self.penalty * distance).where(held, 0.0)
        return Masked(inputs.logprobs.new_ones(held.shape), Measured(means={"kl_cov_share": held.float()}), penalties)

"""Clip-Cov."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from learner.losses.protocol import LossInputs, Measured
from learner.masks.covariance import covariances, of_the_update
from learner.masks.protocol import Mask, Masked, Numbers

if TYPE_CHECKING:
    import torch


class ClipCov(Mask):
    """Leaves out a few random tokens of those that lower the entropy most."""

    kind: Literal["clip_cov"] = "clip_cov"
    share: float = Field(2e-4, gt=0, le=1)
    """Share of an update's tokens to leave out; one at least, where there are such."""
    low: float = 1.0
    """Least covariance of log-prob and advantage of tokens that may be left out."""
    high: float = 5.0
    """Largest covariance of tokens that may be left out."""
    of_the_update: ClassVar[bool] = True

    def statistics(self, advantages: Numbers, logprobs: Numbers) -> Numbers:
        """Both means, and the chance of a token between the bounds that as many are left out as should be."""
        mean_advantage, mean_logprob, each = of_the_update(advantages, logprobs)
        between = int(((each > self.low) & (each < self.high)).sum())
        wanted = max(int(self.share * len(each)), 1)
        return np.array([mean_advantage, mean_logprob, min(1.0, wanted / max(between, 1))])

    def __call__(self, inputs: LossInputs, statistics: torch.Tensor) -> Masked:
        """0 for tokens with low < cov < high that a draw chooses; which one depends on the token alone.

        Source: Clip-Cov of "The Entropy Mechanism of Reinforcement Learning" (arXiv 2505.22617), Eq. 11-12.
        """
        each = covariances(inputs, statistics)
        out = (each > self.low) & (each < self.high) & (draws(inputs.rollout) < statistics[2])
        return Masked((~out).to(inputs.logprobs.dtype), Measured(means={"clip_cov_share": out.float()}))


def draws(logprobs: torch.Tensor) -> torch.Tensor:
    """[N] float64 in [0, 1): pseudo-random numbers from the bits of the sampler's log-probs, so that no cut of a batch and no
    resume draws others. Tokens of one log-prob share their number."""
    import torch

    bits = logprobs.float().view(torch.int32).long() & _BITS
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):  # MurmurHash3's finaliser
        bits = ((bits ^ (bits >> shift)) * factor) & _BITS
    return bits.double() / (_BITS + 1)


_BITS = 2**32 - 1

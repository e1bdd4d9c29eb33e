"""A token's part in the covariance of log-prob and advantage, which is what the policy's entropy falls by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from learner.losses.protocol import LossInputs
from learner.masks.protocol import Numbers

if TYPE_CHECKING:
    import torch


def of_the_update(advantages: Numbers, logprobs: Numbers) -> tuple[float, float, Numbers]:
    """(mean advantage, mean log-prob, [N] (A - mean A) * (log pi - mean log pi)); to the last bit in any order of tokens."""
    means = (float(np.sort(advantages).mean()), float(np.sort(logprobs).mean())) if len(advantages) else (0.0, 0.0)
    return *means, (advantages - means[0]) * (logprobs - means[1])


def covariances(inputs: LossInputs, statistics: torch.Tensor) -> torch.Tensor:
    """[N] of a microbatch's tokens with the log-probs of now; the means are those of the update, first in `statistics`.

    Source: "The Entropy Mechanism of Reinforcement Learning" (arXiv 2505.22617), Eq. 10.
    """
    means = statistics.to(inputs.advantages)
    return (inputs.advantages - means[0]) * (inputs.logprobs.detach() - means[1])

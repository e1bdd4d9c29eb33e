"""VESPO."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from learner.losses.protocol import LOG_RATIO_LIMIT, LossInputs, Measured, Need, log_ratio
from learner.losses.sequences import sample_sums
from moments_service.config import StrictModel

if TYPE_CHECKING:
    import torch

LOWEST = math.log(1e-8)
"""Lower limit of a sample's log-ratio, as in the authors' code."""


class Vespo(StrictModel):
    """REINFORCE weighed by a smooth function of the whole sample's ratio, for stale samples. With `token_mean`."""

    kind: Literal["vespo"] = "vespo"
    power_positive: float = Field(2.0, ge=0)
    """Where A >= 0: how fast the weight falls for samples that have become unlikely."""
    decay_positive: float = Field(3.0, gt=0)
    """Where A >= 0: how fast the weight falls for samples that have become likely."""
    power_negative: float = Field(3.0, ge=0)
    """Where A < 0: how fast the weight falls for samples that have become unlikely."""
    decay_negative: float = Field(2.0, gt=0)
    """Where A < 0: how fast the weight falls for samples that have become likely."""
    needs: ClassVar[frozenset[Need]] = frozenset({"old"})

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """-sg(W^power * exp(decay * (1 - W))) * A * log pi, W = product over the sample of pi / pi_old, within [1e-8, e^20].

        Measures `sequence_weight`, what A * log pi is weighed by: 1 at W = 1. Source: VESPO (arXiv 2602.10693), as in its
        authors' code.
        """
        logs = sample_sums(log_ratio(inputs.logprobs.detach(), inputs.old), inputs).clamp(LOWEST, LOG_RATIO_LIMIT)
        bad = inputs.advantages < 0
        power = logs.new_full(logs.shape, self.power_positive).masked_fill(bad, self.power_negative)
        decay = logs.new_full(logs.shape, self.decay_positive).masked_fill(bad, self.decay_negative)
        weight = (power * logs + decay * (1.0 - logs.exp())).exp()
        return -weight * inputs.advantages * inputs.logprobs, Measured(means={"sequence_weight": weight})

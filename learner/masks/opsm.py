"""Off-policy sequence masking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from learner.losses.protocol import LossInputs, Measured
from learner.losses.sequences import sample_means
from learner.masks.protocol import Mask, Masked

if TYPE_CHECKING:
    import torch


class Opsm(Mask):
    """Leaves out bad samples that the policy has moved far away from: what it would no longer say needs no unlearning."""

    kind: Literal["opsm"] = "opsm"
    threshold: float = Field(0.5, gt=0)
    """Mean of log(pi_rollout / pi) over a sample's tokens, in nats, above which its tokens with A < 0 are left out."""

    def __call__(self, inputs: LossInputs, statistics: torch.Tensor) -> Masked:
        """0 where A < 0 and mean over the sample of (log pi_rollout - log pi) > threshold, else 1.

        Source: DeepSeek-V3.2 (arXiv 2512.02556), Eq. 9, which names no threshold.
        """
        distance = sample_means(inputs.rollout - inputs.logprobs.detach(), inputs)
        out = (inputs.advantages < 0) & (distance > self.threshold)
        return Masked((~out).to(inputs.logprobs.dtype), Measured(means={"opsm_share": out.float()}))

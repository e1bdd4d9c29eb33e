"""PPO-clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from learner.losses.protocol import LossInputs, Measured, Need, log_ratio
from moments_service.config import StrictModel

if TYPE_CHECKING:
    import torch


class PpoClip(StrictModel):
    """PPO's clipped ratio; the bounds may differ, as in DAPO."""

    kind: Literal["ppo_clip"] = "ppo_clip"
    clip_low: float = Field(0.2, gt=0, lt=1)
    """Lower clip of the probability ratio is 1 minus this."""
    clip_high: float = Field(0.2, gt=0)
    """Upper clip of the probability ratio is 1 plus this."""
    needs: ClassVar[frozenset[Need]] = frozenset({"old"})

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """-min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A) with rho = pi / pi_old, whose log is limited to +-20.

        Measures the shares of tokens whose gradient the clip removed. Source: PPO (arXiv 1707.06347), Eq. 7; separate bounds
        from DAPO (arXiv 2503.14476), Eq. 10.
        """
        low, high, advantages = 1.0 - self.clip_low, 1.0 + self.clip_high, inputs.advantages
        ratio = log_ratio(inputs.logprobs, inputs.old).exp()
        losses = -(ratio * advantages).minimum(ratio.clamp(low, high) * advantages)
        now = ratio.detach()
        clipped = {
            "clip_low": ((now < low) & (advantages < 0)).float(),
            "clip_high": ((now > high) & (advantages > 0)).float(),
        }
        return losses, Measured(means=clipped)

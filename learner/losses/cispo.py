"""CISPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from learner.losses.clipping import ClipBounds, clipped_shares
from learner.losses.protocol import LossInputs, Measured, log_ratio

if TYPE_CHECKING:
    import torch


class Cispo(ClipBounds):
    """REINFORCE weighed by a clipped ratio: no token loses its gradient. With `token_mean`."""

    kind: Literal["cispo"] = "cispo"
    clip_low: float = Field(1.0, gt=0, le=1)
    """Lower clip of a token's weight is 1 minus this; 1, as in the paper, is no lower clip."""
    clip_high: float = Field(4.0, gt=0)
    """Upper clip of a token's weight is 1 plus this; 4 is ScaleRL's (arXiv 2510.13786)."""

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """-sg(clip(rho, 1 - clip_low, 1 + clip_high)) * A * log pi, rho = pi / pi_old.

        Measures the shares of tokens whose weight was clipped. Source: CISPO (arXiv 2506.13585), Eq. 4 and 5.
        """
        ratio = log_ratio(inputs.logprobs.detach(), inputs.old).exp()
        low, high = 1.0 - self.clip_low, 1.0 + self.clip_high
        losses = -ratio.clamp(low, high) * inputs.advantages * inputs.logprobs
        return losses, clipped_shares(ratio, low, high)

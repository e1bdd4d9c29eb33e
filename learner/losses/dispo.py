"""DISPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from learner.losses.clipping import clipped_shares
from learner.losses.protocol import LossInputs, Measured, Need, log_ratio
from moments_service.config import StrictModel

if TYPE_CHECKING:
    import torch


class Dispo(StrictModel):
    """CISPO with bounds of their own for good and bad tokens; the defaults are ours, not the paper's. With `token_mean`."""

    kind: Literal["dispo"] = "dispo"
    positive_low: float = Field(0.2, gt=0, le=1)
    """Lower clip of the weight of a token with A > 0 is 1 minus this; those below 1 lower the entropy."""
    positive_high: float = Field(0.28, gt=0)
    """Upper clip of the weight of a token with A > 0 is 1 plus this; those above 1 raise the entropy."""
    negative_low: float = Field(1.0, gt=0, le=1)
    """Lower clip of the weight of a token with A < 0 is 1 minus this; a narrow one lets answers shrink to nothing."""
    negative_high: float = Field(4.0, gt=0)
    """Upper clip of the weight of a token with A < 0 is 1 plus this; a narrow one lets answers repeat themselves."""
    needs: ClassVar[frozenset[Need]] = frozenset({"old"})

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """-sg(clip(rho, 1 - low(A), 1 + high(A))) * A * log pi, rho = pi / pi_old; the bounds are chosen by the sign of A.

        Measures the shares of tokens whose weight was clipped. Source: DISPO (arXiv 2602.00983); the objective is the paper's,
        how the four bounds enter it and their values are reconstructed.
        """
        ratio = log_ratio(inputs.logprobs.detach(), inputs.old).exp()
        good = inputs.advantages > 0
        low = ratio.new_full(ratio.shape, 1.0 - self.negative_low).masked_fill(good, 1.0 - self.positive_low)
        high = ratio.new_full(ratio.shape, 1.0 + self.negative_high).masked_fill(good, 1.0 + self.positive_high)
        losses = -ratio.clamp(low, high) * inputs.advantages * inputs.logprobs
        return losses, clipped_shares(ratio, low, high)

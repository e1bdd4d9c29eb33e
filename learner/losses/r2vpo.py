"""R2VPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from learner.losses.protocol import LossInputs, Measured, Need, log_ratio
from moments_service.config import StrictModel

if TYPE_CHECKING:
    import torch


class R2vpo(StrictModel):
    """A penalty on the ratio's variance in the place of a clip; its coefficient is fixed, where the paper adapts it."""

    kind: Literal["r2vpo"] = "r2vpo"
    penalty: float = Field(0.04, ge=0)
    """Weight of the squared distance of the ratio from 1; raise it where `ratio_variance` grows."""
    needs: ClassVar[frozenset[Need]] = frozenset({"old"})

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """-(rho * A - penalty * (rho - 1)^2), rho = pi / pi_old, not clipped.

        Measures `ratio_variance`, the mean of (rho - 1)^2. Source: R2VPO (arXiv 2601.03320), reconstructed: the paper's dual
        ascent, penalty <- max(0, penalty + eta * (variance - bound)), and its decay by staleness are left out.
        """
        ratio = log_ratio(inputs.logprobs, inputs.old).exp()
        squares = (ratio - 1.0).square()
        return self.penalty * squares - ratio * inputs.advantages, Measured(means={"ratio_variance": squares.detach()})

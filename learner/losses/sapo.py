"""SAPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from learner.losses.protocol import LossInputs, Measured, Need, log_ratio
from moments_service.config import StrictModel

if TYPE_CHECKING:
    import torch


class Sapo(StrictModel):
    """A smooth gate on the ratio in the place of a clip: the gradient fades instead of ending. With `seq_mean_token_mean`."""

    kind: Literal["sapo"] = "sapo"
    temperature_positive: float = Field(1.0, gt=0)
    """How fast the gradient of a token with A > 0 fades as its ratio leaves 1."""
    temperature_negative: float = Field(1.05, gt=0)
    """The same for other tokens, whose gradients are the less stable ones."""
    needs: ClassVar[frozenset[Need]] = frozenset({"old"})

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """-A * 4 / tau * sigmoid(tau * (rho - 1)), rho = pi / pi_old, tau by the sign of A.

        Measures `gate`, the share of rho * A's gradient that is left: 4 * p * (1 - p), 1 at rho = 1, with p the sigmoid.
        Source: SAPO (arXiv 2511.20347), Eq. 5 and 6.
        """
        ratio = log_ratio(inputs.logprobs, inputs.old).exp()
        temperatures = ratio.new_full(ratio.shape, self.temperature_negative)
        temperatures = temperatures.masked_fill(inputs.advantages > 0, self.temperature_positive)
        opened = (temperatures * (ratio - 1.0)).sigmoid()
        now = opened.detach()
        losses = -inputs.advantages * opened * 4.0 / temperatures
        return losses, Measured(means={"gate": 4.0 * now * (1.0 - now)})

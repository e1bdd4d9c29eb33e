"""PPO-clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from learner.losses.clipping import ClipBounds
from learner.losses.protocol import LossInputs, Measured, log_ratio

if TYPE_CHECKING:
    import torch


class PpoClip(ClipBounds):
    """PPO's clipped ratio; the bounds may differ, as in DAPO."""

    kind: Literal["ppo_clip"] = "ppo_clip"
    dual_clip: float | None = Field(None, gt=1)
    """Ratios above this no longer push down a token with a negative advantage; none for no such limit. Usual: 3 or 10."""

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """-min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A) with rho = pi / pi_old, whose log is limited to +-20.

        With `dual_clip` = c the loss of a negative A is at most -c * A. Measures the shares of tokens whose gradient the clips
        removed. Source: PPO (arXiv 1707.06347), Eq. 7; separate bounds from DAPO (arXiv 2503.14476), Eq. 10; dual clip from
        arXiv 1912.09729, Eq. 5, which is also INTELLECT-2's two-sided clip (arXiv 2505.07291).
        """
        ratio = log_ratio(inputs.logprobs, inputs.old).exp()
        losses, measured = self.surrogate(ratio, inputs.advantages)
        if self.dual_clip is None:
            return losses, measured
        limited = (inputs.advantages < 0) & (ratio.detach() > self.dual_clip)
        losses = losses.where(~limited, -self.dual_clip * inputs.advantages)
        return losses, Measured(measured.means | {"clip_dual": limited.float()})

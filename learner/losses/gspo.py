"""GSPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from learner.losses.clipping import ClipBounds
from learner.losses.protocol import LossInputs, Measured
from learner.losses.sequences import sequence_ratio

if TYPE_CHECKING:
    import torch


class Gspo(ClipBounds):
    """PPO's clip of the geometric mean of a sample's ratios: samples are clipped whole. With `seq_mean_token_mean`."""

    kind: Literal["gspo"] = "gspo"
    clip_low: float = Field(3e-4, gt=0, lt=1)
    """Lower clip of the sample's mean ratio is 1 minus this."""
    clip_high: float = Field(4e-4, gt=0)
    """Upper clip of the sample's mean ratio is 1 plus this."""

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """-min(s * A, clip(s, 1 - clip_low, 1 + clip_high) * A), s = exp(mean over the sample of log(pi / pi_old)).

        In the paper's token form (see `sequence_ratio`), so that tokens may have advantages and weights of their own. Source:
        GSPO (arXiv 2507.18071), Eq. 5, 7, 13 and 14; bounds from its section 5.1.
        """
        return self.surrogate(sequence_ratio(inputs), inputs.advantages)

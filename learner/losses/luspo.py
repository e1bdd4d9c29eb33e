"""LUSPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from learner.losses.clipping import ClipBounds
from learner.losses.protocol import LossInputs, Measured
from learner.losses.sequences import sample_lengths, sequence_ratio

if TYPE_CHECKING:
    import torch


class Luspo(ClipBounds):
    """GSPO times the sample's length, so that long answers are not underweighted. With `seq_mean_token_mean` only."""

    kind: Literal["luspo"] = "luspo"
    clip_low: float = Field(2e-3, gt=0, lt=1)
    """Lower clip of the sample's mean ratio is 1 minus this."""
    clip_high: float = Field(2.5e-3, gt=0)
    """Upper clip of the sample's mean ratio is 1 plus this."""

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """-|y| * min(s * A, clip(s, 1 - clip_low, 1 + clip_high) * A), s = exp(mean over the sample of log(pi / pi_old)).

        |y|: trained tokens of the sample. An aggregation that sums over tokens would count the length twice. Source: LUSPO
        (arXiv 2602.05261).
        """
        losses, measured = self.surrogate(sequence_ratio(inputs), inputs.advantages)
        return sample_lengths(inputs) * losses, measured

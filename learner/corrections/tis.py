"""Truncated importance sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from learner.corrections.ratios import Level, sampler_ratio
from learner.losses.protocol import LossInputs, Measured, Need
from moments_service.config import StrictModel

if TYPE_CHECKING:
    import torch


class TruncatedImportance(StrictModel):
    """Weighs tokens by how much likelier they are now than when they were sampled, up to a cap."""

    kind: Literal["tis"] = "tis"
    level: Level = "token"
    """Ratio of the token, of the whole sample (`sequence`), or its geometric mean over the sample."""
    cap: float = Field(2.0, ge=1)
    """Largest weight. Usual: 1.5 to 5."""
    needs: ClassVar[frozenset[Need]] = frozenset({"old"})

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """min(pi_old / pi_rollout, cap), without a gradient. Measures the mean weight and the share that is capped.

        The product over a sample is unbiased but for the cap, and scatters with its length; a token's own scatters little and leaves the
        tokens before it uncorrected. Source: arXiv 2508.18756 in verl and TRL (`sequence_truncate`, `token_truncate`).
        """
        ratio = sampler_ratio(inputs, self.level)
        weights = ratio.clamp(max=self.cap)
        capped = (ratio > self.cap).to(ratio.dtype)
        return weights, Measured({"correction_weight": weights, "correction_capped": capped})

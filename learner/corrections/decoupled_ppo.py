"""Decoupled PPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from learner.corrections.ratios import sampler_ratio
from learner.losses.protocol import LossInputs, Measured, Need
from moments_service.config import StrictModel

if TYPE_CHECKING:
    import torch


class DecoupledPpo(StrictModel):
    """Weighs tokens by the proximal policy over the one that sampled them, whole: clips hold around the one, samples come from the other."""

    kind: Literal["decoupled_ppo"] = "decoupled_ppo"
    needs: ClassVar[frozenset[Need]] = frozenset({"old"})

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """pi_prox / pi_rollout, without a gradient. Which policy is the proximal one `learner.old_logprobs` says.

        Source: arXiv 2110.00641, Eq. 2; for language models AReaL (arXiv 2505.24298), Eq. 5.
        """
        weights = sampler_ratio(inputs, "token")
        return weights, Measured({"correction_weight": weights})

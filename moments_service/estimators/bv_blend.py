"""BV-Blend: the group's statistics blended with the history of its semantic cluster, trusted by its standard error."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field

from moments_service.blend import (
    Array,
    between_means_variance,
    blended_baseline,
    blended_variance,
    exponential_confidence,
    group_moments,
    inverse_variance_confidence,
    linear_confidence,
    rational_confidence,
    standard_error,
)
from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RewardBatch, advantages
from moments_service.moments import History

DELTA = 1e-8
JEFFREYS = 0.5
"""Pseudo-counts of each outcome that keep the variance of a uniform group above zero."""

CONFIDENCES: dict[str, Callable[[Array, float], Array]] = {
    "exp": exponential_confidence,
    "rational": rational_confidence,
    "linear": linear_confidence,
}


class BlendConfig(EstimatorOptions):
    """BV-Blend (arXiv 2606.28707). `safe` is the production preset, `paper` the published algorithm to the letter."""

    kind: Literal["bv_blend"] = "bv_blend"
    variant: Literal["safe", "paper", "eb", "precision"] = "safe"
    """`paper` keeps the paper's EMA; the others decay proper counts under a prior, and `eb` (empirical Bayes, for broad clusters) and `precision` weigh history by variances instead of `confidence`."""
    confidence: Literal["exp", "rational", "linear"] = "exp"
    """Safe and paper: how trust falls with u = standard error / temperature: exp(-u), 1 / (1 + u) or max(0, 1 - u)."""
    temperature: float = Field(0.1, gt=0)
    """How fast trust in a cluster's history falls with its standard error; in reward units."""
    retention: float = Field(0.95, gt=0, lt=1)
    """Safe: what one policy version leaves of every cluster's counts."""
    kl_half_life: float | None = Field(None, gt=0)
    """Safe: history also halves when the policy has moved by this KL (nats per token); the learner then measures it."""
    prior: tuple[float, float] = (1.0, 1.0)
    """Safe: pseudo-counts of reward 1 and of reward 0 that keep the variance of a cluster above zero."""
    max_advantage: float = Field(5.0, gt=0)
    """Safe: advantages are clipped to this magnitude."""
    update_rate: float = Field(0.9, gt=0, le=1)
    """Paper: weight of the newest batch in the EMA (gamma)."""
    initial_mass: float = Field(8.0, gt=0)
    """Paper: mass given to a cluster at first sight (N0)."""
    initial_variance: float = Field(0.25, gt=0)
    """Paper: variance given to a cluster at first sight (V_prior)."""

    def create(self) -> Estimator:
        blend = VARIANTS[self.variant]
        return lambda batch: blend(batch, self)

    @property
    def fades_by_move(self) -> bool:
        return self.kl_half_life is not None and self.variant != "paper"

    def caution(self, low: float, high: float) -> str | None:
        if self.variant != "paper":
            return None
        return (
            f"bv_blend: paper bounds no advantage: where all that a cluster remembers is alike, its scale is next to nothing, and a "
            f"group unlike it gets up to (high - low) / {DELTA:g} = {(high - low) / DELTA:.0e} for rewards from {low:g} to {high:g}; "
            f"variant safe stops at max_advantage = {self.max_advantage:g}"
        )


def bv_blend_paper(batch: RewardBatch, config: BlendConfig) -> Advantages:
    """A = (r - b) / (s + 1e-8), baseline and variance blended by the trust in the cluster's history.

    A cluster never seen has w = 0: plain group statistics. Source: BV-Blend (arXiv 2606.28707), Algorithm 1, Eq. 7-11.
    """
    history = batch.history
    mean, variance, _ = group_moments(batch.rewards)
    weight = sem_weight(history, config)
    scale = np.sqrt(blended_variance(weight, history.variance, variance))
    return advantages(batch.rewards, blended_baseline(weight, history.mean, mean), scale, DELTA, weight)


def bv_blend_safe(batch: RewardBatch, config: BlendConfig) -> Advantages:
    """The paper's blend with the between-means variance added and |A| clipped.

    Both bound what a lucky group can do in a cluster whose variance has collapsed.
    """
    return _bounded_blend(batch, sem_weight(batch.history, config), config)


def bv_blend_eb(batch: RewardBatch, config: BlendConfig) -> Advantages:
    """The safe blend, trusting history as a random-effects model of the cluster's prompts does.

    w = V_l / (V_l + V_h) with V_l = v_w / G, what sampling adds to the group's mean, and V_h = tau^2 + v_w / mass, how far
    a prompt's true mean lies from the cluster's: tau^2 is the variance between prompts, v_w the one within. A cluster of
    unlike prompts is trusted less, however long it is known. Source: METHODS A.8, rule W5 (a cluster-local EBPO).
    """
    history = batch.history
    _, _, count = group_moments(batch.rewards)
    local = history.within / np.maximum(count, 1.0)
    historical = history.between + history.within / np.maximum(history.mass, DELTA)
    weight = np.where(history.seen, inverse_variance_confidence(local, historical), 0.0)
    return _bounded_blend(batch, weight, config)


def bv_blend_precision(batch: RewardBatch, config: BlendConfig) -> Advantages:
    """The safe blend with w = V_l / (V_l + V_h), V_l = v_group / G and V_h = v_history / mass.

    The combination of least variance if every prompt had its cluster's mean. v_group is smoothed by half a reward of each
    outcome, or a uniform group would seem certain, just where history is needed. Source: METHODS A.8, rule W4.
    """
    history = batch.history
    mean, variance, count = group_moments(batch.rewards)
    total = count + 2 * JEFFREYS
    smoothed_mean = (mean * count + JEFFREYS) / total
    smoothed = ((variance + mean**2) * count + JEFFREYS) / total - smoothed_mean**2
    local = smoothed / np.maximum(count, 1.0)
    weight = inverse_variance_confidence(local, history.variance / np.maximum(history.mass, DELTA))
    return _bounded_blend(batch, np.where(history.seen, weight, 0.0), config)


VARIANTS: dict[str, Callable[[RewardBatch, BlendConfig], Advantages]] = {
    "paper": bv_blend_paper,
    "safe": bv_blend_safe,
    "eb": bv_blend_eb,
    "precision": bv_blend_precision,
}


def sem_weight(history: History, config: BlendConfig) -> Array:
    """Trust in each group's history, [M] in [0, 1], from its standard error; 0 where nothing was seen."""
    error = standard_error(history.variance, history.mass)
    return np.where(history.seen, CONFIDENCES[config.confidence](error, config.temperature), 0.0)


def _bounded_blend(batch: RewardBatch, weight: Array, config: BlendConfig) -> Advantages:
    history = batch.history
    mean, variance, _ = group_moments(batch.rewards)
    scale = np.sqrt(
        blended_variance(weight, history.variance, variance) + between_means_variance(weight, history.mean, mean)
    )
    blended = advantages(batch.rewards, blended_baseline(weight, history.mean, mean), scale, DELTA, weight)
    clipped = np.clip(blended.values, -config.max_advantage, config.max_advantage)
    return Advantages(clipped, blended.baseline, blended.scale, weight)

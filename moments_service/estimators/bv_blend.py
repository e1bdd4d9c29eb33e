"""BV-Blend: the group's statistics blended with the history of its semantic cluster, trusted by its standard error."""

import numpy as np

from moments_service.blend import (
    Array,
    between_means_variance,
    blended_baseline,
    blended_variance,
    group_moments,
    sem_confidence,
)
from moments_service.config import BlendConfig
from moments_service.estimators.base import Advantages, Estimator
from moments_service.moments import History

DELTA = 1e-8


def bv_blend_paper(rewards: Array, history: History, temperature: float) -> Advantages:
    """A = (r - b) / (s + 1e-8) with baseline and variance blended by w = exp(-SEM / temperature).

    rewards: [M, G], NaN where there is none. A cluster never seen has w = 0: plain group statistics.
    Source: BV-Blend (arXiv 2606.28707), Algorithm 1, Eq. 7-11.
    """
    mean, variance, _ = group_moments(rewards)
    weight = np.where(history.seen, sem_confidence(history.variance, history.mass, temperature), 0.0)
    baseline = blended_baseline(weight, history.mean, mean)
    scale = np.sqrt(blended_variance(weight, history.variance, variance))
    values = (rewards - baseline[:, None]) / (scale[:, None] + DELTA)
    return Advantages(values=values, baseline=baseline, scale=scale, weight=weight)


def bv_blend_safe(rewards: Array, history: History, temperature: float, max_advantage: float) -> Advantages:
    """The paper's blend with the between-means variance added and |A| clipped.

    Both bound what a lucky group can do in a cluster whose variance has collapsed. rewards: [M, G], NaN where none.
    """
    mean, variance, _ = group_moments(rewards)
    weight = np.where(history.seen, sem_confidence(history.variance, history.mass, temperature), 0.0)
    baseline = blended_baseline(weight, history.mean, mean)
    total_variance = blended_variance(weight, history.variance, variance) + between_means_variance(
        weight, history.mean, mean
    )
    scale = np.sqrt(total_variance)
    values = np.clip((rewards - baseline[:, None]) / (scale[:, None] + DELTA), -max_advantage, max_advantage)
    return Advantages(values=values, baseline=baseline, scale=scale, weight=weight)


def create_bv_blend(config: BlendConfig) -> Estimator:
    """The estimator of the configured variant."""
    if config.variant == "paper":
        return lambda rewards, history: bv_blend_paper(rewards, history, config.temperature)
    return lambda rewards, history: bv_blend_safe(rewards, history, config.temperature, config.max_advantage)

"""Reward moments of every cluster: two ways to remember, one interface."""

from moments_service.config import BlendConfig
from moments_service.moments.base import ClusterMoments, CommittedRewards, History, Indices
from moments_service.moments.decayed import DecayedCounts
from moments_service.moments.paper import PaperMoments

__all__ = [
    "ClusterMoments",
    "CommittedRewards",
    "DecayedCounts",
    "History",
    "Indices",
    "PaperMoments",
    "create_moments",
]


def create_moments(config: BlendConfig, clusters: int) -> ClusterMoments:
    """Empty moments of the kind that the blend variant asks for."""
    if config.variant == "paper":
        return PaperMoments(clusters, config.update_rate, config.initial_mass, config.initial_variance)
    return DecayedCounts(clusters, config.retention, config.prior, config.kl_half_life)

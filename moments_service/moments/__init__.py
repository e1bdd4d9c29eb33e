"""Reward moments of every cluster: two ways to remember, one interface."""

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
]

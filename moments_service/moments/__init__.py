"""Reward moments of every cluster: three ways to remember, one interface."""

from moments_service.moments.base import ClusterMoments, CommittedRewards, History, Indices
from moments_service.moments.decayed import DecayedCounts
from moments_service.moments.paper import PaperMoments
from moments_service.moments.tracked import TrackedMeans

__all__ = [
    "ClusterMoments",
    "CommittedRewards",
    "DecayedCounts",
    "History",
    "Indices",
    "PaperMoments",
    "TrackedMeans",
]

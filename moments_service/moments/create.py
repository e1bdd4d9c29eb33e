"""Which kind of moments a run keeps."""

from typing import Literal

from moments_service.estimators.bv_blend import BlendConfig
from moments_service.moments.base import ClusterMoments
from moments_service.moments.decayed import DecayedCounts
from moments_service.moments.paper import PaperMoments
from moments_service.moments.tracked import TrackedMeans

MomentsKind = Literal["tracked", "decayed", "paper"]
"""Moments of one kind can take each other up."""


def create_moments(kind: MomentsKind, blend: BlendConfig, clusters: int) -> ClusterMoments:
    """Empty moments. blend: how history fades, of the kinds that are told."""
    if kind == "tracked":
        return TrackedMeans(clusters)
    if kind == "paper":
        return PaperMoments(clusters, blend.update_rate, blend.initial_mass, blend.initial_variance)
    return DecayedCounts(clusters, blend.retention, blend.prior, blend.kl_half_life)

"""Which kind of moments a run keeps."""

from moments_service.estimators.bv_blend import BlendConfig
from moments_service.moments.base import ClusterMoments
from moments_service.moments.decayed import DecayedCounts
from moments_service.moments.paper import PaperMoments


def create_moments(config: BlendConfig, clusters: int) -> ClusterMoments:
    """Empty moments of the kind that the blend variant asks for."""
    if config.variant == "paper":
        return PaperMoments(clusters, config.update_rate, config.initial_mass, config.initial_variance)
    return DecayedCounts(clusters, config.retention, config.prior, config.kl_half_life)

"""Moments on their way from one run to another: whether a new run can begin with them."""

from pathlib import Path

from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError
from deploy.run.prompt_set import encoder_fingerprint
from moments_service.clusters import load_clusters
from moments_service.offline.portable import PortableMoments, WarmStart


def read_warm_start(
    config: RunConfig, exported: Path | None, codebook: Path | None, discount: float
) -> WarmStart | None:
    """What the new run begins with; None where neither is named. Raises ConfigError if it does not fit the run."""
    if exported is None and codebook is None:
        if discount != 1.0:
            raise ConfigError("--discount is the share of imported moments to keep; name them with --warm-start")
        return None
    try:
        if exported is not None:
            portable = PortableMoments.read(exported).discounted(discount)
            start = WarmStart(portable.clusters, portable)
        else:
            assert codebook is not None
            start = WarmStart(load_clusters(codebook))
        start.refuse_misfit(config.moments, encoder_fingerprint(config))
    except ValueError as error:
        raise ConfigError(f"{exported or codebook}: {error}") from None
    return start

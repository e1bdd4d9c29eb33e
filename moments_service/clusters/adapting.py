"""When clusters change while a run goes on: which ones split, and which ones retire."""

import numpy as np

from moments_service.clusters.base import ClusterChange, Clusters, PromptSet
from moments_service.clusters.codebook import Codebook, CodebookDraft
from moments_service.moments import ClusterMoments

SPLIT_BETWEEN = 0.1
"""A cluster splits when the variance of its prompts' true mean rewards is above this: a spread of .32 in reward."""
SPLIT_MASS = 64.0
"""And when so many effective rewards say so."""
SPLIT_PROMPTS = 8
"""And when each half has at least so many prompts."""
RETIRE_MASS = 1.0
"""A cluster without prompts retires when less than one effective reward is left of it."""


def adapted(clusters: Clusters, moments: ClusterMoments, prompts: PromptSet) -> ClusterChange | None:
    """Grow for unseen prompts, split clusters of unlike prompts, retire dead ones; None if there is nothing to do.

    Labels never split and never retire. Moments that tell no variance between prompts (the paper's) never split.
    """
    if not isinstance(clusters, Codebook):
        return clusters.grown(prompts)
    draft = CodebookDraft(clusters)
    draft.grow(prompts)
    embeddings = prompts.embedded()
    assigned = clusters.nearest(embeddings)
    history = moments.history(np.arange(len(clusters)))
    sizes = np.bincount(assigned, minlength=len(clusters))
    wide = (history.between > SPLIT_BETWEEN) & (history.mass >= SPLIT_MASS) & (sizes >= 2 * SPLIT_PROMPTS)
    dead = (sizes == 0) & (history.mass < RETIRE_MASS)
    for cluster in clusters.living[wide[clusters.living]]:
        draft.split(int(cluster), embeddings[assigned == cluster], SPLIT_PROMPTS)
    for cluster in clusters.living[dead[clusters.living]]:
        draft.retire(int(cluster))
    return draft.finish()

"""How many clusters a prompt set has: the last doubling that pays.

Measured on prompts kept out of the fit, so that centroids which only follow single prompts gain nothing.
"""

from dataclasses import dataclass

import numpy as np

from moments_service.clusters.base import Embeddings
from moments_service.clusters.index import CentroidIndex, spherical_kmeans
from moments_service.seeding import derive_seed

PAYS = 0.1
"""A doubling pays if it brings prompts kept out of the fit nearer to their centroid by this share of their distance."""
PROMPTS_PER_CLUSTER = 8
"""Most clusters: so many that each has this many prompts on average."""
MOST = 4096
"""Larger codebooks have to be asked for by number."""
_SAMPLE = 32_768
"""Prompts that the choice is made on, where there are more."""
_ITERATIONS = 10


@dataclass(frozen=True, slots=True)
class CountChoice:
    """The chosen number of clusters, and what was measured: candidate -> mean cosine of kept-out prompts."""

    count: int
    cosines: dict[int, float]


def choose_count(embeddings: Embeddings, seed: int) -> CountChoice:
    """Powers of two in turn: K takes the place of the chosen C if 1 - cos(K) <= (1 - PAYS)^log2(K / C) * (1 - cos(C)).

    cos(K) is the mean cosine, to their nearest centroid, of the half of the prompts that the K centroids were not fitted
    on. So each doubling from C to K has to bring prompts nearer by PAYS, on average over these doublings. The last doubling that pays, and
    not the first that does not: among many equal clusters the first doublings gain little. Where the prompts fall into
    clear clusters, K lies between their number and twice that: k-means joins some of them until it has centroids to spare.

    embeddings: [N, d] float32, unit length, N >= 1. Candidates stay below N / PROMPTS_PER_CLUSTER and MOST.
    """
    points = np.unique(np.ascontiguousarray(embeddings, dtype=np.float32), axis=0)
    order = np.random.default_rng(derive_seed(seed, "count")).permutation(len(points))[:_SAMPLE]
    fitted, kept_out = points[order[::2]], points[order[1::2]]
    most = min(len(points) // PROMPTS_PER_CLUSTER, len(fitted), MOST)
    cosines: dict[int, float] = {}
    chosen, count = 1, 1
    while count <= most:
        centroids = spherical_kmeans(fitted, count, derive_seed(seed, "count", count), _ITERATIONS)
        nearest = CentroidIndex(centroids, centroids[:0]).nearest(kept_out)
        cosines[count] = float(np.einsum("nd,nd->n", kept_out, centroids[nearest]).mean())
        doublings = count.bit_length() - chosen.bit_length()
        if 1.0 - cosines[count] <= (1.0 - PAYS) ** doublings * (1.0 - cosines[chosen]):
            chosen = count
        count *= 2
    return CountChoice(chosen, cosines)

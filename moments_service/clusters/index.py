"""Nearest centroid, the same answer always: for any batch size, any number of threads, any machine.

Unit vectors are rounded to a grid of 1/2000 and searched as whole numbers: every inner product and every partial sum of
one is a whole number below 2^24, which float32 holds exactly, so no order of summation changes a bit of it. Half
precision holds the coordinates exactly too.
"""

import math
from typing import Any

import faiss
import numpy as np

from moments_service.clusters.base import Embeddings, Indices

GRID = 2000.0
"""Steps per unit; below 2048, up to where half precision holds every whole number."""
EXACT_UP_TO = 1024
"""Centroids that are searched one by one: 10 us a query at d = 384; twice as many take 23."""
CELLS_PER_ROOT = 4
PROBES = 4
"""Above that, 4 * sqrt(K) cells of which the nearest 4 are searched: 10 us a query at K = 4096, 35 at 65,536."""
_POINTS_PER_CELL = 64
_ITERATIONS = 8


class CentroidIndex:
    """Search over K centroids. centroids: [K, d] float32, unit length.    cells: [L, d] from `fit_cells`, L = 0 for none."""

    def __init__(self, centroids: Embeddings, cells: Embeddings) -> None:
        dimension = centroids.shape[1]
        self._index: Any = faiss.IndexFlatIP(dimension)
        if len(cells):
            # Kept: the inverted lists only borrow it.
            self._coarse = faiss.IndexFlatIP(dimension)
            self._coarse.add(_on_grid(cells))
            self._index = faiss.IndexIVFScalarQuantizer(
                self._coarse,
                dimension,
                len(cells),
                faiss.ScalarQuantizer.QT_fp16,
                faiss.METRIC_INNER_PRODUCT,
                False,
            )
            self._index.is_trained = True
            self._index.nprobe = min(PROBES, len(cells))
        self._index.add(_on_grid(centroids))
        self._everywhere: Any = faiss.SearchParametersIVF()
        self._everywhere.nprobe = len(cells)

    def nearest(self, embeddings: Embeddings) -> Indices:
        """Row of the nearest centroid of each embedding, [N]. embeddings: [N, d] float32, unit length."""
        points = _on_grid(embeddings)
        _, found = self._index.search(points, 1)
        rows = found[:, 0]
        empty = rows < 0
        if empty.any():  # every probed cell was empty
            _, found = self._index.search(points[empty], 1, params=self._everywhere)
            rows[empty] = found[:, 0]
        return rows


def fit_cells(centroids: Embeddings) -> Embeddings:
    """Centres of the cells that an index over so many centroids needs, [L, d]; L = 0 where it needs none."""
    count, dimension = centroids.shape
    if count <= EXACT_UP_TO:
        return np.zeros((0, dimension), dtype=np.float32)
    return spherical_kmeans(
        centroids, CELLS_PER_ROOT * math.isqrt(count), seed=0, iterations=_ITERATIONS, sample=_POINTS_PER_CELL
    )


def spherical_kmeans(
    points: Embeddings, clusters: int, seed: int, iterations: int = 25, sample: int = 10**9
) -> Embeddings:
    """Centroids of FAISS k-means on the sphere, [clusters, d]. points: [N, d], N >= clusters.

    sample: most points per centroid to train on; FAISS would silently take 256.
    """
    kmeans = faiss.Kmeans(
        points.shape[1],
        clusters,
        spherical=True,
        seed=seed % 2**31,
        niter=iterations,
        max_points_per_centroid=sample,
        min_points_per_centroid=1,
    )
    kmeans.train(np.ascontiguousarray(points, dtype=np.float32))
    assert kmeans.centroids is not None
    return np.asarray(kmeans.centroids, dtype=np.float32)


def _on_grid(vectors: Embeddings) -> Embeddings:
    return np.rint(np.ascontiguousarray(vectors, dtype=np.float32) * np.float32(GRID))

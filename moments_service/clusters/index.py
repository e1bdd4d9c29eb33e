"""Nearest centroid, the same answer always: for any batch size, any number of threads, any machine.

Unit vectors are rounded to a grid of 1/2000 and searched as whole numbers: every inner product and every partial sum of
one is a whole number below 2^24, which float32 holds exactly, so no order of summation changes a bit of it. Half
precision holds the coordinates exactly too.
"""

import math
from typing import Any

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
    """Search over K centroids. centroids: [K, d] float32, unit length.    cells: [L, d] of `fit_cells`, L = 0 for none."""

    def __init__(self, centroids: Embeddings, cells: Embeddings) -> None:
        import faiss  # late: clusters by a label, and estimators without any, are used where it is not installed

        dimension = centroids.shape[1]
        self._index: Any = faiss.IndexFlatIP(dimension)
        # Kept: the inverted lists only borrow it, and the cells are held nowhere else.
        self._coarse: Any = faiss.IndexFlatIP(dimension)
        if len(cells):
            self._coarse.add(cells)
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
        self._add(_on_grid(centroids))
        self._everywhere: Any = faiss.SearchParametersIVF()
        self._everywhere.nprobe = len(cells)

    @property
    def cells(self) -> Embeddings:
        """What it was made with."""
        return np.asarray(self._coarse.reconstruct_n(0, self._coarse.ntotal), dtype=np.float32)

    def _add(self, points: Embeddings) -> None:
        import faiss

        if not self._coarse.ntotal:
            self._index.add(points)
            return
        cell_of = np.ascontiguousarray(self._coarse.search(points, 1)[1][:, 0])
        # Lists that grow point by point would keep half as much again: give each its size first.
        for cell, size in enumerate(np.bincount(cell_of, minlength=self._coarse.ntotal).tolist()):
            self._index.invlists.resize(cell, size)
            self._index.invlists.resize(cell, 0)
        self._index.add_core(len(points), faiss.swig_ptr(points), None, faiss.swig_ptr(cell_of))

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
    """Centres, on the grid, of the cells that an index over these centroids needs, [L, d]; L = 0 where it needs none."""
    count, dimension = centroids.shape
    if count <= EXACT_UP_TO:
        return np.zeros((0, dimension), dtype=np.float32)
    cells = CELLS_PER_ROOT * math.isqrt(count)
    return _on_grid(spherical_kmeans(centroids, cells, seed=0, iterations=_ITERATIONS, sample=_POINTS_PER_CELL))


def spherical_kmeans(
    points: Embeddings, clusters: int, seed: int, iterations: int = 25, sample: int = 10**9
) -> Embeddings:
    """Centroids of FAISS k-means on the sphere, [clusters, d]. points: [N, d], N >= clusters.

    sample: most points per centroid to train on; FAISS would silently take 256.
    """
    import faiss

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
    scaled = np.multiply(vectors, np.float32(GRID), dtype=np.float32, order="C")
    return np.rint(scaled, out=scaled)

"""The codebook: which semantic cluster a prompt belongs to. FAISS spherical k-means over prompt embeddings."""

import hashlib
from pathlib import Path

import faiss
import numpy as np
from safetensors.numpy import load_file, save_file


class Codebook:
    """Frozen centroids; a prompt belongs to the one with the greatest cosine.

    centroids: [K, d] float32, unit length.
    """

    def __init__(self, centroids: np.ndarray) -> None:
        self.centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        self._index = faiss.IndexFlatIP(self.centroids.shape[1])
        self._index.add(self.centroids)

    def __len__(self) -> int:
        return len(self.centroids)

    @property
    def fingerprint(self) -> str:
        """Hash of the centroids: moments belong to exactly one codebook."""
        return hashlib.sha256(self.centroids.tobytes()).hexdigest()[:16]

    def assign(self, embeddings: np.ndarray) -> np.ndarray:
        """Cluster of each embedding. embeddings: [N, d] float32, unit length. Returns [N] int64."""
        _, nearest = self._index.search(np.ascontiguousarray(embeddings, dtype=np.float32), 1)
        return nearest[:, 0]

    def save(self, path: Path) -> None:
        save_file({"centroids": self.centroids}, path)

    @classmethod
    def load(cls, path: Path) -> "Codebook":
        return cls(load_file(path)["centroids"])


def fit_codebook(embeddings: np.ndarray, clusters: int, seed: int) -> Codebook:
    """Fit `clusters` centroids, or as many as there are distinct embeddings if those are fewer.

    embeddings: [N, d] float32, unit length, N >= 1.
    """
    points = np.unique(np.ascontiguousarray(embeddings, dtype=np.float32), axis=0)
    kmeans = faiss.Kmeans(
        points.shape[1],
        min(clusters, len(points)),
        spherical=True,
        seed=seed % 2**31,
        niter=25,
        # FAISS would silently train on a sample of 256 points per centroid.
        max_points_per_centroid=10**9,
        min_points_per_centroid=1,
    )
    kmeans.train(points)
    assert kmeans.centroids is not None
    return Codebook(kmeans.centroids)

"""The codebook: which semantic cluster a prompt belongs to, by the nearest of its centroids."""

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import load_file

from moments_service.clusters.base import ClusterChange, Embeddings, Indices, PromptSet, Transfer
from moments_service.clusters.fitting import choose_count
from moments_service.clusters.index import CentroidIndex, fit_cells, spherical_kmeans
from moments_service.durable import strict_json, write_tensors
from moments_service.messages.table import GroupTable

NOVELTY_PERCENTILE = 1.0
"""A prompt is unlike any seen before if its cosine is below that of this share (percent) of the fitted prompts."""


KINSHIP_WIDTH = 0.25
"""Cosine distance at which the likeness of two clusters has fallen to 1 / e: prompts on one subject lie about so far apart."""


class Codebook:
    """Frozen centroids; a prompt belongs to the living one with the greatest cosine (on a grid, see `index.py`).

    centroids: [K, d] float32, unit length.    heirs: [K], who stands for each id; itself while it lives.
    novelty: cosine below which a prompt is unlike any seen before.    known: [P] uint64, prompts seen so far.
    cells: [L, d] of the index; made here when left out.    parent: fingerprint of the version before.
    """

    by = "embedding"

    def __init__(
        self,
        centroids: Embeddings,
        heirs: Indices | None = None,
        novelty: float = -1.0,
        known: np.ndarray | None = None,
        cells: Embeddings | None = None,
        encoder: str = "",
        version: int = 0,
        parent: str = "",
    ) -> None:
        self.centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        self.heirs = np.arange(len(centroids)) if heirs is None else heirs
        self.novelty = novelty
        self.known = np.zeros(0, dtype=np.uint64) if known is None else known
        self.encoder, self.version, self.parent = encoder, version, parent
        self.living = np.flatnonzero(self.heirs == np.arange(len(self.heirs)))
        alive = self.centroids[self.living]
        self._index = CentroidIndex(alive, fit_cells(alive) if cells is None else cells)
        # The prompts of the run: looked up instead of searched, so that a group costs the same however many clusters.
        self._of_prompt: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.centroids)

    @property
    def cells(self) -> Embeddings:
        return self._index.cells

    @property
    def fingerprint(self) -> str:
        stamp = hashlib.sha256(self.encoder.encode())
        for array in (self.centroids, self.heirs, self.cells):
            stamp.update(array.tobytes())
        return stamp.hexdigest()[:16]

    def nearest(self, embeddings: Embeddings) -> Indices:
        """Cluster of each embedding, [N]. embeddings: [N, d] float32, unit length."""
        dimension = self.centroids.shape[1]
        if embeddings.ndim != 2 or embeddings.shape[1] != dimension:
            raise ValueError(f"embeddings {embeddings.shape} do not fit centroids of {dimension} dimensions")
        return self.living[self._index.nearest(embeddings)]

    def cosines(self, embeddings: Embeddings, clusters: Indices) -> np.ndarray:
        """Cosine of each embedding to the centroid of its cluster, [N] float32."""
        return np.einsum("nd,nd->n", embeddings, self.centroids[clusters])

    def kinship(self) -> npt.NDArray[np.float64]:
        """exp((cosine - 1) / KINSHIP_WIDTH) of the centroids: positive definite, as any function of squared distance of that kind."""
        cosines = self.centroids.astype(np.float64) @ self.centroids.T.astype(np.float64)
        found: npt.NDArray[np.float64] = np.exp((cosines - 1.0) / KINSHIP_WIDTH)
        np.fill_diagonal(found, 1.0)
        return found

    def remember(self, prompts: PromptSet) -> Indices:
        """Look the clusters of these prompts up once; `assign` then knows them by id. Returns them, [N]."""
        clusters = self.assign_prompts(prompts)
        self._of_prompt.update(zip(prompts.prompt_ids, clusters.tolist(), strict=True))
        return clusters

    def assign(self, table: GroupTable) -> Indices:
        known = self._of_prompt
        try:
            return np.array([known[prompt_id] for prompt_id in table.prompt_ids], dtype=np.int64)
        except KeyError as error:
            group_id = table.group_ids[table.prompt_ids.index(error.args[0])]
            raise ValueError(
                f"group {group_id}: its prompt {error.args[0]} is unknown; call remember(PromptSet) before its groups come"
            ) from None

    def assign_prompts(self, prompts: PromptSet) -> Indices:
        return self.nearest(prompts.embedded())

    def unseen(self, prompts: PromptSet) -> Indices:
        """Rows of the prompts that are new and unlike any seen before."""
        embeddings = prompts.embedded()
        far = self.cosines(embeddings, self.nearest(embeddings)) < self.novelty
        return np.flatnonzero(far & ~np.isin(prompt_keys(prompts), self.known))

    def grown(self, prompts: PromptSet) -> ClusterChange | None:
        draft = CodebookDraft(self)
        draft.grow(prompts)
        return draft.finish()

    def save(self, path: Path) -> None:
        arrays = {"centroids": self.centroids, "heirs": self.heirs, "known": self.known, "cells": self.cells}
        about = {
            "by": self.by,
            "version": str(self.version),
            "encoder": self.encoder,
            "parent": self.parent,
            "fingerprint": self.fingerprint,
            "novelty": strict_json(self.novelty),
        }
        write_tensors(path, arrays, about)

    @classmethod
    def load(cls, path: Path) -> "Codebook":
        """Read what `save` wrote. Raises ValueError if the file is no codebook or was changed since."""
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
        if about.get("by") != cls.by:
            raise ValueError(f"{path} is no codebook of embeddings")
        arrays = load_file(path)
        codebook = cls(
            arrays["centroids"],
            arrays["heirs"],
            json.loads(about["novelty"]),
            arrays["known"],
            arrays["cells"],
            about["encoder"],
            int(about["version"]),
            about["parent"],
        )
        if codebook.fingerprint != about["fingerprint"]:
            raise ValueError(f"{path} is damaged: its content is not what its fingerprint {about['fingerprint']} says")
        return codebook


class CodebookDraft:
    """The next version of a codebook in the making. Old centroids stay as they are, bit for bit; ids are never reused."""

    def __init__(self, codebook: Codebook) -> None:
        self._old = codebook
        self._centroids = [codebook.centroids]
        self._heirs = codebook.heirs.copy()
        self._known = codebook.known
        self._transfers: list[Transfer] = []

    def grow(self, prompts: PromptSet) -> int:
        """Give prompts that are unlike any seen before clusters of their own. Returns how many clusters came.

        Their number follows the rule for `count: auto`, on those prompts alone.
        """
        unseen = self._old.unseen(prompts)
        if not len(unseen):
            return 0
        points = np.unique(prompts.embedded()[unseen], axis=0)
        count = choose_count(points, seed=len(self._heirs)).count
        self._append(spherical_kmeans(points, count, seed=len(self._heirs)))
        self._known = np.union1d(self._known, prompt_keys(prompts))
        return count

    def split(self, cluster: int, embeddings: Embeddings, smallest: int = 1) -> bool:
        """Put two clusters in the place of one, by 2-means over its prompts' embeddings ([n, d]).

        The children inherit in proportion to their prompts. Returns False, and changes nothing, where the prompts do not
        fall in two parts of at least `smallest`.
        """
        if self._heirs[cluster] != cluster:
            raise ValueError(f"cluster {cluster} is retired and cannot be split")
        if len(np.unique(embeddings, axis=0)) < 2:
            return False
        pair = spherical_kmeans(embeddings, 2, seed=cluster)
        part = CentroidIndex(pair, pair[:0]).nearest(embeddings)
        sizes = np.bincount(part, minlength=2)
        if sizes.min() < max(smallest, 1):
            return False
        first, second = self._append(pair)
        self._transfers += [
            Transfer(cluster, first, float(sizes[0] / sizes.sum())),
            Transfer(cluster, second, 1.0),
        ]
        self._pass_on(cluster, first if sizes[0] >= sizes[1] else second)
        return True

    def retire(self, cluster: int) -> int:
        """Close a cluster; what it remembers goes to the nearest living one, whose id is returned."""
        centroids = np.concatenate(self._centroids)
        others = np.flatnonzero(self._heirs == np.arange(len(self._heirs)))
        others = others[others != cluster]
        if not len(others) or self._heirs[cluster] != cluster:
            raise ValueError(f"cluster {cluster} is retired already or the last one alive")
        index = CentroidIndex(centroids[others], centroids[:0])
        heir = int(others[index.nearest(centroids[cluster][None])[0]])
        self._transfers.append(Transfer(cluster, heir, 1.0))
        self._pass_on(cluster, heir)
        return heir

    def finish(self) -> ClusterChange | None:
        """The new version; None if nothing changed."""
        centroids = np.concatenate(self._centroids)
        if np.array_equal(self._heirs, self._old.heirs):
            return None
        codebook = Codebook(
            centroids,
            self._heirs,
            self._old.novelty,
            self._known,
            encoder=self._old.encoder,
            version=self._old.version + 1,
            parent=self._old.fingerprint,
        )
        return ClusterChange(codebook, tuple(self._transfers))

    def _append(self, centroids: Embeddings) -> list[int]:
        new = np.arange(len(self._heirs), len(self._heirs) + len(centroids))
        self._centroids.append(centroids)
        self._heirs = np.concatenate([self._heirs, new])
        return [int(cluster) for cluster in new]

    def _pass_on(self, cluster: int, heir: int) -> None:
        self._heirs[self._heirs == cluster] = heir


def fit_codebook(prompts: PromptSet | Embeddings, clusters: int, seed: int) -> Codebook:
    """Fit `clusters` centroids, or as many as there are distinct embeddings if those are fewer. At least one prompt."""
    if not isinstance(prompts, PromptSet):
        prompts = PromptSet.of_embeddings(prompts)
    embeddings = prompts.embedded()
    points = np.unique(embeddings, axis=0)
    codebook = Codebook(spherical_kmeans(points, min(clusters, len(points)), seed))
    cosines = codebook.cosines(embeddings, codebook.nearest(embeddings))
    return Codebook(
        codebook.centroids,
        novelty=float(np.percentile(cosines, NOVELTY_PERCENTILE)),
        known=np.unique(prompt_keys(prompts)),
        cells=codebook.cells,
        encoder=prompts.encoder,
    )


def prompt_keys(prompts: PromptSet) -> np.ndarray:
    """A number for each prompt id, [N] uint64."""
    digests = [hashlib.sha256(prompt_id.encode()).digest()[:8] for prompt_id in prompts.prompt_ids]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)

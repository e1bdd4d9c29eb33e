"""What every kind of clusters is, and what a change of them does to the moments."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from moments_service.messages.table import GroupTable

Indices = npt.NDArray[np.int64]
Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompts that a run trains on, as clusters see them: N rows.

    embeddings: [N, d] float32, unit length; None where clusters are not made of them.
    encoder: fingerprint of what made the embeddings, "" where nobody says.
    """

    prompt_ids: tuple[str, ...]
    sources: tuple[str, ...]
    difficulties: tuple[str, ...]
    embeddings: Embeddings | None = None
    encoder: str = ""

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @classmethod
    def of_embeddings(cls, embeddings: Embeddings) -> "PromptSet":
        """Nameless prompts: each is known by its embedding alone."""
        rows = np.ascontiguousarray(embeddings, dtype=np.float32)
        ids = tuple(hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in rows)
        nothing = ("",) * len(rows)
        return cls(ids, nothing, nothing, rows)

    def embedded(self) -> Embeddings:
        """The embeddings. Raises ValueError where there are none."""
        if self.embeddings is None:
            raise ValueError("these prompts carry no embeddings, and clusters by embedding are made of them")
        return np.ascontiguousarray(self.embeddings, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Transfer:
    """`share` in (0, 1] of what cluster `source` remembers goes to `target`; transfers happen one after the other."""

    source: int
    target: int
    share: float


@dataclass(frozen=True, slots=True)
class ClusterChange:
    """A new version of the clusters, and what it moves among their moments. Ids stay what they were; new ones append."""

    clusters: "Clusters"
    transfers: tuple[Transfer, ...] = ()


@runtime_checkable
class Clusters(Protocol):
    """One version of the clusters of a run; never changes what it assigns. A change makes a new version."""

    @property
    def by(self) -> str:
        """What they are made of: `embedding`, `source`, `difficulty` or `prompt`."""
        ...

    @property
    def encoder(self) -> str:
        """Fingerprint of the encoder, "" where there is none."""
        ...

    @property
    def version(self) -> int:
        """How many changes led here."""
        ...

    @property
    def heirs(self) -> Indices:
        """[K]: for every id the living cluster that now stands for it; itself while it lives."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides who belongs where: moments belong to exactly one fingerprint."""
        ...

    def __len__(self) -> int:
        """Number of ids ever given, retired ones included."""
        ...

    def assign(self, table: GroupTable) -> Indices:
        """Cluster of each group, [N]. Raises ValueError for a group whose prompt `remember` was not told of."""
        ...

    def assign_prompts(self, prompts: PromptSet) -> Indices:
        """Cluster of each prompt, [N]."""
        ...

    def kinship(self) -> npt.NDArray[np.float64] | None:
        """[K, K] how alike the prompts of two clusters are, in [0, 1], 1 for a cluster with itself; None where nobody knows."""
        ...

    def remember(self, prompts: PromptSet) -> Indices:
        """Look the clusters of prompts up, once: `assign` knows them from then on. Returns them, [N]."""
        ...

    def grown(self, prompts: PromptSet) -> ClusterChange | None:
        """The version that has room for prompts unlike any seen before; None if all of them fit in this one."""
        ...

    def save(self, path: Path) -> None:
        """Write one safetensors file, durably; `load_clusters` reads it."""
        ...

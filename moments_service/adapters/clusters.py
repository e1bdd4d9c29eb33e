"""How a prompt gets its cluster when nobody else has assigned one: by meaning, or by a name that the caller gives."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moments_service.clusters import Codebook, PromptSet, choose_count, fit_codebook
from moments_service.clusters.blur import blur
from moments_service.clusters.encoder import PromptEncoder
from moments_service.config import ClusterConfig
from moments_service.durable import write_json
from moments_service.moments import Indices
from moments_service.seeding import derive_seed

log = logging.getLogger(__name__)

CODEBOOK_FILE = "codebook.safetensors"
LABELS_FILE = "labels.json"


class Encoder(Protocol):
    """Texts to unit vectors, [N, d] float32."""

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...


class PromptClusters(Protocol):
    """Where the clusters of prompts come from. Indices never change their meaning; there may come to be more of them."""

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Moments belong to clusters of exactly this fingerprint."""
        ...

    def assign(self, names: Sequence[str]) -> Indices:
        """Cluster of each name, [N]: of each prompt's text, or of each label."""
        ...

    def save(self, directory: Path) -> None: ...


class SemanticClusters:
    """FAISS k-means over the encoder's embeddings, fitted on `prompts`, or on the first texts to be assigned.

    Fit on the whole prompt set where that is at hand: clusters of one batch are coarse, and are never fitted again.
    """

    def __init__(
        self, config: ClusterConfig, seed: int = 0, prompts: Iterable[str] = (), encoder: Encoder | None = None
    ) -> None:
        self._config = config
        self._seed = seed
        self._encoder = encoder
        self._codebook: Codebook | None = None
        if texts := list(dict.fromkeys(prompts)):
            embeddings = self._embed(texts)
            for sentence in blur(("of the prompts",) * len(texts), texts, embeddings):
                log.warning("%s", sentence)
            self._fit(embeddings)

    def __len__(self) -> int:
        return 0 if self._codebook is None else len(self._codebook)

    @property
    def fingerprint(self) -> str:
        return "unfitted" if self._codebook is None else self._codebook.fingerprint

    def assign(self, names: Sequence[str]) -> Indices:
        embeddings = self._embed(names)
        codebook = self._fit(embeddings) if self._codebook is None else self._codebook
        return codebook.nearest(embeddings)

    def save(self, directory: Path) -> None:
        if self._codebook is not None:
            self._codebook.save(directory / CODEBOOK_FILE)

    @classmethod
    def load(cls, directory: Path, config: ClusterConfig, seed: int, encoder: Encoder | None) -> "SemanticClusters":
        clusters = cls(config, seed, encoder=encoder)
        if (directory / CODEBOOK_FILE).exists():
            clusters._codebook = Codebook.load(directory / CODEBOOK_FILE)
        return clusters

    def _fit(self, embeddings: np.ndarray) -> Codebook:
        seed, count = derive_seed(self._seed, "codebook"), self._config.count
        chosen = choose_count(embeddings, seed).count if count == "auto" else count
        self._codebook = fit_codebook(PromptSet.of_embeddings(embeddings), chosen, seed)
        return self._codebook

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        if self._encoder is None:
            self._encoder = PromptEncoder(self._config)
        return self._encoder.encode(texts)


class NamedClusters:
    """One cluster per label, made when it is first seen: a data source, a topic; or the prompt itself."""

    def __init__(self, labels: Iterable[str] = ()) -> None:
        self._indices = {label: index for index, label in enumerate(dict.fromkeys(labels))}

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("\x1f".join(self._indices).encode()).hexdigest()[:16]

    def assign(self, names: Sequence[str]) -> Indices:
        return np.array([self._indices.setdefault(name, len(self._indices)) for name in names], dtype=np.int64)

    def save(self, directory: Path) -> None:
        write_json(directory / LABELS_FILE, list(self._indices))

    @classmethod
    def load(cls, directory: Path) -> "NamedClusters":
        return cls(json.loads((directory / LABELS_FILE).read_text(encoding="utf-8")))


def prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """The words of a prompt: a text as it is; of a conversation, what its messages say, the system's aside.

    Contents made of parts (text, images) give their texts.
    """
    if isinstance(prompt, str):
        return prompt
    said = [message for message in prompt if message["role"] != "system"] or prompt
    return "\n".join(_content_text(message["content"]) for message in said)


def _content_text(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part["text"] for part in content if part.get("type") == "text")

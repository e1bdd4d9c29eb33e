"""Clusters by a label that prompts carry: their source, their difficulty, or each prompt by itself."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from moments_service.clusters.base import ClusterChange, Indices, PromptSet
from moments_service.durable import write_tensors
from moments_service.messages.table import GroupTable

LABELS = ("source", "difficulty", "prompt")


class LabelClusters:
    """A table label -> id that only ever grows, in the order in which labels were met.

    by: which label: `source`, `difficulty` or `prompt`.    labels: distinct, the id is the place.
    """

    encoder = ""

    def __init__(self, by: str, labels: Sequence[str] = (), version: int = 0, parent: str = "") -> None:
        if by not in LABELS:
            raise ValueError(f"clusters cannot be made by {by!r}; known are {', '.join(LABELS)}")
        self.by, self.version, self.parent = by, version, parent
        self.labels = tuple(labels)
        self.heirs = np.arange(len(self.labels))
        self._ids = {label: cluster for cluster, label in enumerate(self.labels)}

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([self.by, self.labels]).encode()).hexdigest()[:16]

    def assign(self, table: GroupTable) -> Indices:
        labels = {"source": table.sources, "difficulty": table.difficulties, "prompt": table.prompt_ids}
        return self._look_up(labels[self.by])

    def assign_prompts(self, prompts: PromptSet) -> Indices:
        return self._look_up(self._labels_of(prompts))

    def kinship(self) -> None:
        return None

    def remember(self, prompts: PromptSet) -> Indices:
        return self.assign_prompts(prompts)

    def grown(self, prompts: PromptSet) -> ClusterChange | None:
        new = [label for label in dict.fromkeys(self._labels_of(prompts)) if label not in self._ids]
        if not new:
            return None
        return ClusterChange(LabelClusters(self.by, (*self.labels, *new), self.version + 1, self.fingerprint))

    def save(self, path: Path) -> None:
        table = np.frombuffer(json.dumps(self.labels).encode(), dtype=np.uint8)
        about = {
            "by": self.by,
            "version": str(self.version),
            "encoder": "",
            "parent": self.parent,
            "fingerprint": self.fingerprint,
        }
        write_tensors(path, {"labels": table}, about)

    @classmethod
    def load(cls, path: Path) -> "LabelClusters":
        """Read what `save` wrote. Raises ValueError if the file is no such table or was changed since."""
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
        if about.get("by") not in LABELS:
            raise ValueError(f"{path} is no table of labels")
        labels = json.loads(load_file(path)["labels"].tobytes())
        clusters = cls(about["by"], labels, int(about["version"]), about["parent"])
        if clusters.fingerprint != about["fingerprint"]:
            raise ValueError(f"{path} is damaged: its content is not what its fingerprint {about['fingerprint']} says")
        return clusters

    def _labels_of(self, prompts: PromptSet) -> Sequence[str]:
        by_label = {"source": prompts.sources, "difficulty": prompts.difficulties, "prompt": prompts.prompt_ids}
        return by_label[self.by]

    def _look_up(self, labels: Sequence[str]) -> Indices:
        try:
            return np.array([self._ids[label] for label in labels], dtype=np.int64)
        except KeyError as error:
            raise ValueError(
                f"no cluster for {self.by} {error.args[0]!r}: it is not among the prompts that clusters were made of"
            ) from None


def fit_labels(prompts: PromptSet, by: str) -> LabelClusters:
    """One cluster for each distinct label. Raises ValueError where a prompt has none."""
    clusters = LabelClusters(by)
    labels = list(dict.fromkeys(clusters._labels_of(prompts)))
    if "" in labels:
        raise ValueError(f"clusters by {by}: a prompt has no {by}")
    return LabelClusters(by, labels)

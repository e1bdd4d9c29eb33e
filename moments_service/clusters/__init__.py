"""Which prompts share their history: clusters of embeddings, or by a label."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from moments_service.clusters.base import ClusterChange, Clusters, PromptSet, Transfer
from moments_service.clusters.codebook import Codebook, fit_codebook
from moments_service.clusters.fitting import choose_count
from moments_service.clusters.labels import LabelClusters, fit_labels
from moments_service.config import ClusterConfig

__all__ = [
    "ClusterChange",
    "Clusters",
    "Codebook",
    "LabelClusters",
    "PromptSet",
    "Transfer",
    "choose_count",
    "fit_clusters",
    "fit_codebook",
    "load_clusters",
    "refuse_other_clusters",
]


def fit_clusters(config: ClusterConfig, prompts: PromptSet, seed: int) -> Clusters:
    """Clusters of the configured kind for a prompt set. Raises ValueError if the prompts lack what they are made of."""
    if config.by != "embedding":
        return fit_labels(prompts, config.by)
    count = choose_count(prompts.embedded(), seed).count if config.count == "auto" else config.count
    return fit_codebook(prompts, count, seed)


def load_clusters(path: Path) -> Clusters:
    """Read clusters of any kind. Raises ValueError if the file holds none."""
    try:
        with safe_open(path, framework="numpy") as file:
            by = (file.metadata() or {}).get("by")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as a codebook: {error}") from None
    return Codebook.load(path) if by == Codebook.by else LabelClusters.load(path)


def refuse_other_clusters(clusters: Clusters, by: str, encoder: str) -> None:
    """Raise ValueError if clusters cannot take prompts of this kind; encoder "" is not compared."""
    if clusters.by != by:
        raise ValueError(f"these clusters are by {clusters.by}, and moments.clusters.by is {by}")
    if not encoder or not clusters.encoder or encoder == clusters.encoder:
        return
    if encoder.partition(":")[0] == clusters.encoder.partition(":")[0]:
        made_of, wanted = (what.partition(":")[2] or "prompt" for what in (clusters.encoder, encoder))
        raise ValueError(
            f"these clusters were made of embeddings of each {made_of}, and moments.clusters.embed is {wanted}; "
            f"set moments.clusters.embed={made_of} or begin without them"
        )
    raise ValueError(
        f"these clusters were made with encoder {clusters.encoder}, and this run's encoder is {encoder} "
        "(moments.clusters.encoder); embeddings of two encoders have nothing in common"
    )

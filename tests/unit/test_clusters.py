"""Encoder and codebook with their real parts: MiniLM from its wheel, FAISS."""

from pathlib import Path

import numpy as np
import pytest

from moments_service.clusters import Codebook, fit_codebook
from moments_service.config import ClusterConfig
from moments_service.encoder import EncoderNotFoundError, PromptEncoder

pytestmark = pytest.mark.unit


def blobs(clusters: int, each: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centers = np.eye(16)[:clusters]
    points = np.repeat(centers, each, axis=0) + 0.05 * generator.normal(size=(clusters * each, 16))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def test_separate_blobs_become_separate_clusters() -> None:
    codebook = fit_codebook(blobs(4, 50), clusters=4, seed=0)
    assigned = codebook.nearest(blobs(4, 50, seed=1)).reshape(4, 50)
    assert (assigned == assigned[:, :1]).all()
    assert len(set(assigned[:, 0])) == 4
    np.testing.assert_allclose(np.linalg.norm(codebook.centroids, axis=1), 1.0, rtol=1e-5)


def test_the_same_seed_gives_the_same_codebook_and_it_survives_the_disk(tmp_path: Path) -> None:
    points = blobs(4, 50)
    first, second = fit_codebook(points, 6, seed=3), fit_codebook(points, 6, seed=3)
    assert first.fingerprint == second.fingerprint
    first.save(tmp_path / "codebook.safetensors")
    assert Codebook.load(tmp_path / "codebook.safetensors").fingerprint == first.fingerprint


def test_there_are_never_more_clusters_than_distinct_prompts() -> None:
    assert len(fit_codebook(np.repeat(np.eye(3, dtype=np.float32), 5, axis=0), clusters=16, seed=0)) == 3


def test_minilm_puts_alike_questions_together_and_embeds_each_text_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = PromptEncoder(ClusterConfig(cache_dir=str(tmp_path)))
    sums = [f"What is {a} + {b}?" for a, b in ((2, 3), (9, 4), (7, 7))]
    legs = [f"How many legs do {n} dogs have?" for n in (1, 2, 3)]
    embedded = encoder.encode([*sums, *legs, sums[0]])
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(embedded[0], embedded[-1])
    clusters = fit_codebook(embedded, 2, seed=0).nearest(embedded)
    assert len(set(clusters[:3])) == len(set(clusters[3:6])) == 1 and clusters[0] != clusters[3]

    def refuse(texts: list[str]) -> np.ndarray:
        raise AssertionError(f"embedded again: {texts}")

    monkeypatch.setattr(encoder, "_embed", refuse)
    np.testing.assert_array_equal(encoder.encode([*sums, *legs, sums[0]]), embedded)


def test_an_absent_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderNotFoundError, match="not a sentence-transformers directory"):
        PromptEncoder(ClusterConfig(encoder=str(tmp_path)))

"""Two encoders of one shape: what they are is what their files hold, not what they are called."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from moments_service.clusters import fit_codebook, refuse_other_clusters
from moments_service.clusters.base import PromptSet
from moments_service.clusters.encoder import PromptEncoder, content_fingerprint, encoder_path
from moments_service.config import ClusterConfig

pytestmark = pytest.mark.unit

TEXTS = ["What is 2 + 3?", "How many legs has a dog?"]


def make_encoder(directory: Path, seed: int) -> Path:
    """A small sentence encoder whose directory is called like every other."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    tokenizer_files = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
    (bare := directory / "bare").mkdir(parents=True)
    for name in tokenizer_files:
        if (encoder_path("minilm") / name).exists():
            shutil.copy(encoder_path("minilm") / name, bare)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=30522, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(bare)
    words = Transformer(str(bare))
    model = SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension())], device="cpu")
    model.save(str(directory / "encoder"), create_model_card=False)
    return directory / "encoder"


def encoder(path: Path, cache: Path) -> PromptEncoder:
    return PromptEncoder(ClusterConfig(encoder=str(path), cache_dir=str(cache)))


def test_another_encoder_of_the_same_shape_has_embeddings_and_clusters_of_its_own(tmp_path: Path) -> None:
    first, second = (make_encoder(tmp_path / name, seed) for seed, name in enumerate(("one", "two")))
    sizes = [{file.name: file.stat().st_size for file in path.rglob("*.safetensors")} for path in (first, second)]
    assert first.name == second.name and sizes[0] == sizes[1]
    cache = tmp_path / "cache"
    one, two = encoder(first, cache), encoder(second, cache)
    assert one.fingerprint != two.fingerprint
    embedded = one.encode(TEXTS)
    assert not np.allclose(two.encode(TEXTS), embedded, atol=1e-3)
    assert np.array_equal(encoder(first, cache).encode(TEXTS), embedded)
    prompts = PromptSet(("a", "b"), ("", ""), ("", ""), embedded, one.fingerprint)
    with pytest.raises(ValueError, match="embeddings of two encoders have nothing in common"):
        refuse_other_clusters(fit_codebook(prompts, 2, 0), "embedding", two.fingerprint)
    moved = shutil.copytree(first, tmp_path / "moved" / "renamed")
    assert content_fingerprint(moved) == one.fingerprint


@pytest.mark.parametrize("name", ["model.safetensors", "1_Pooling/config.json", "tokenizer.json"])
def test_every_file_that_decides_counts(tmp_path: Path, name: str) -> None:
    for file in ("model.safetensors", "modules.json", "1_Pooling/config.json", "tokenizer.json", "README.md"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"0123456789")
    before = content_fingerprint(tmp_path)
    (tmp_path / "README.md").write_bytes(b"words")
    assert content_fingerprint(tmp_path) == before
    (tmp_path / name).write_bytes(b"0123456780")
    assert content_fingerprint(tmp_path) != before

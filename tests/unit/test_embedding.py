"""Embeddings of long prompts, and of prompts that share a template: what differs between them counts."""

import hashlib
import logging
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from actors.prompts.prompt import Prompt
from deploy.config.models import RunConfig
from deploy.config.recipe import dump_config, load_recipe
from deploy.run.prompt_set import prompt_set
from deploy.rundir.find import load_run_config
from deploy.rundir.layout import RunDirectory
from moments_service.clusters import fit_codebook, refuse_other_clusters
from moments_service.clusters.blur import blur
from moments_service.clusters.embedding import embed, embedder, pieces
from moments_service.clusters.encoder import PromptEncoder, encoder_path
from moments_service.config import ClusterConfig
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

QUESTIONS = ["What is 17 + 25?", "Name the capital of Peru.", "Spell 'garden' backwards, please.", "3 < 5?"]
LONG = "Think step by step, check every step twice, and give only the result at the very end of it all. " * 20
"""More than 400 tokens."""


@pytest.fixture(scope="module")
def model() -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(encoder_path("minilm")), device="cpu")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    recipe = ROOT / "deploy" / "recipes" / "cold_start.yaml"
    return load_recipe(recipe, [f"moments.clusters.cache_dir={tmp_path}/cache", f"runs_dir={tmp_path}"])


def prompts(around: str, source: str = "s") -> list[Prompt]:
    texts = [around.replace("{question}", question) for question in QUESTIONS]
    return [
        Prompt(text[-20:], source, text, "1", "exact", question=question)
        for text, question in zip(texts, QUESTIONS, strict=True)
    ]


def encoder(directory: Path) -> PromptEncoder:
    return PromptEncoder(ClusterConfig(cache_dir=str(directory)))


def test_short_texts_have_the_bits_that_they_always_had(model: Any, tmp_path: Path) -> None:
    expected = model.encode(QUESTIONS, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
    assert np.array_equal(encoder(tmp_path).encode(QUESTIONS), expected)


def test_a_gpu_s_process_embeds_as_this_one_does(model: Any) -> None:
    with embedder(encoder_path("minilm"), "cpu") as there:
        vectors, divided = there([*QUESTIONS, LONG])
    here, _ = embed(model, [*QUESTIONS, LONG])
    np.testing.assert_allclose(vectors, here, atol=1e-6)  # its number of threads is its own
    assert divided == 1


def test_texts_that_differ_behind_the_window_have_embeddings_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = encoder(tmp_path).encode([LONG + question for question in QUESTIONS])
    assert np.unique(found, axis=0).shape == found.shape
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert "4 of 4 texts have more tokens than the encoder's 256" in caplog.text


def test_a_long_text_is_the_mean_of_its_pieces_by_tokens(model: Any) -> None:
    text = LONG + "x" * 90 + " 1,2,3 größe 中文 " * 70 + QUESTIONS[1]
    (parts,) = pieces(model.tokenizer, [text], 256)
    tokens = [model.tokenizer(part, add_special_tokens=False)["input_ids"] for part, _ in parts]
    assert len(parts) > 3 and max(map(len, tokens)) <= 254 and [count for _, count in parts] == list(map(len, tokens))
    whole = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert [token for ids in tokens for token in ids] == whole
    own = model.encode([part for part, _ in parts], normalize_embeddings=True).astype(np.float64)
    mean = sum(len(ids) * vector for ids, vector in zip(tokens, own, strict=True))
    vectors, divided = embed(model, [text, QUESTIONS[0]])
    np.testing.assert_allclose(vectors[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert divided == 1


def test_what_was_cut_off_before_is_embedded_anew(tmp_path: Path) -> None:
    own = encoder(tmp_path)
    own.encode(QUESTIONS[:1])
    (cache,) = tmp_path.glob("*.sqlite")
    with sqlite3.connect(cache) as connection:
        row = (hashlib.sha256(LONG.encode()).hexdigest(), np.full(384, 7, dtype=np.float32).tobytes())
        connection.execute("INSERT INTO embeddings VALUES (?, ?)", row)
    assert own.encode([LONG]).max() < 1


def test_neither_template_nor_solved_examples_count(config: RunConfig) -> None:
    plain = prompt_set(config, prompts("{question}"))
    assert plain.embeddings is not None and plain.encoder.endswith(":question")
    assert np.array_equal(prompt_set(config, prompts(LONG + "{question}")).embedded(), plain.embeddings)


def test_whole_prompts_can_be_embedded_too_and_fit_no_clusters_of_questions(config: RunConfig) -> None:
    clusters = config.moments.clusters.model_copy(update={"embed": "prompt"})
    whole = config.model_copy(update={"moments": config.moments.model_copy(update={"clusters": clusters})})
    made = prompt_set(whole, prompts("Question: {question}\nAnswer:"))
    questions = prompt_set(config, prompts("Question: {question}\nAnswer:"))
    assert not np.allclose(made.embedded(), questions.embedded(), atol=1e-3)
    with pytest.raises(
        ValueError, match=r"of each prompt, and .*embed is question; set moments\.clusters\.embed=prompt"
    ):
        refuse_other_clusters(fit_codebook(made, 2, 0), "embedding", questions.encoder)


def test_a_run_from_before_goes_on_with_whole_prompts(config: RunConfig, tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "runs", "old", dump_config(config))
    assert load_run_config(directory).moments.clusters.embed == "question"
    written = yaml.safe_load(directory.config.read_text(encoding="utf-8"))
    del written["moments"]["clusters"]["embed"]
    directory.config.write_text(yaml.safe_dump(written), encoding="utf-8")
    assert load_run_config(directory).moments.clusters.embed == "prompt"
    assert load_run_config(directory, ["moments.clusters.embed=question"]).moments.clusters.embed == "question"


def test_a_beginning_that_all_questions_share_is_named(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    inside = [
        Prompt(f"p{place}", "math", LONG + question, "1", "exact", question=LONG + question)
        for place, question in enumerate(QUESTIONS)
    ]
    with caplog.at_level(logging.WARNING):
        prompt_set(config, [*inside, *prompts("{question}")])
    assert f"all 4 embedded texts of source `math` begin with the same {len(LONG)} of" in caplog.text
    assert "put what they share in the source's `template`" in caplog.text
    assert "`s`" not in caplog.text


def test_embeddings_that_coincide_are_named() -> None:
    same = np.tile(np.eye(1, 8, dtype=np.float32), (3, 1))
    assert not list(blur("aaa", ["What?", "what? ", "WHAT?"], same))
    (sentence,) = blur("aaa", ["What?", "Who?", "where?"], same)
    assert sentence.startswith(
        "2 of 3 different texts have the embedding of another one, for example 'What?' and 'Who?'"
    )
    assert not list(blur("aaa", ["What?", "Who?", "where?"], np.eye(3, dtype=np.float32)))

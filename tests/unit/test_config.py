"""Recipes and overrides: what is wrong is said before anything starts, with the key, the value and the nearest key."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from actors.prompts.sources import load_prompts
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, dump_config, load_recipe, models_in
from docs.config_reference import reference
from tests.conftest import ROOT
from tests.word_problems import write_word_problems

pytestmark = pytest.mark.unit

RECIPES = ROOT / "deploy" / "recipes"
MINIMAL = {
    "name": "mine",
    "policy": "policy",
    "steps": 3,
    "prompts": {"sources": [{"kind": "reasoning_gym", "name": "sums", "task": "chain_sum", "limit": 10}]},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    config = load_recipe(path)
    assert Path(config.policy).is_absolute()


def test_gsm8k_is_ten_lines_and_its_file_reads_as_it_is(tmp_path: Path) -> None:
    lines = (RECIPES / "gsm8k.yaml").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if not line.startswith("#")]) <= 10
    path = write_word_problems(tmp_path / "train.jsonl", 300)
    pool = load_prompts(load_recipe(RECIPES / "gsm8k.yaml", [f"prompts.sources.0.path={path}"]).prompts, tmp_path)
    assert len(pool.train) == 236 and len(pool.held_out) == 64
    assert {prompt.verifier for prompt in pool.train} == {"math"}
    assert all(prompt.answer and int(prompt.answer.replace(",", "")) > 0 for prompt in pool.train)


def test_a_resolved_config_is_a_recipe_again(recipe: Path, tmp_path: Path) -> None:
    config = load_recipe(recipe, ["learner.optimizer.lr=3e-5"])
    resolved = tmp_path / "elsewhere" / "config.yaml"
    resolved.parent.mkdir()
    resolved.write_text(dump_config(config))
    assert load_recipe(resolved) == config
    assert config.learner.optimizer.lr == 3e-5


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("group_sise=4", "group_sise: unknown key (value 4); did you mean group_size?"),
        (
            "moments.estimator={kind: bv_blend, temprature: 1}",
            "moments.estimator.temprature: unknown key (value 1); did you mean temperature?",
        ),
        ("prompts.sources.0.limt=1", "prompts.sources.0.limt: unknown key (value 1); did you mean limit?"),
        (
            "rollout.engine={kind: vllm, kv_cach_gib: 1}",
            "rollout.engine.kv_cach_gib: unknown key (value 1); did you mean kv_cache_gib?",
        ),
        ("rollout.engine={kind: transformers, gpus: 1}", "rollout.engine.gpus: unknown key (value 1); known: kind"),
        (
            "rollout.engine=transformer",
            "rollout.engine: no such kind (value 'transformer'); did you mean transformers?",
        ),
        ("environment=single", "environment.kind: Input should be 'single_turn' (value 'single')"),
        ("moments.estimator=gpro", "unknown estimator 'gpro'; did you mean grpo?"),
        (
            "moments.estimator={kind: spo, rho_mni: 0.5}",
            "moments.estimator.rho_mni: unknown key (value 0.5); did you mean rho_min?",
        ),
        (
            "moments.estimator={kind: pass_at_k, k: 0}",
            "moments.estimator.k: Input should be greater than or equal to 1 (value 0)",
        ),
        (
            "moments.estimator={kind: bv_blend, variant: save}",
            "moments.estimator.variant: Input should be 'safe', 'paper', 'eb' or 'precision' (value 'save')",
        ),
        ("steps=none", "steps: "),
        ("learner.optimizer.lr=-1", "learner.optimizer.lr: Input should be greater than 0 (value -1)"),
        ("max_staleness=2", "max_staleness: "),
        ("steps", "--set steps: write it as key.path=value"),
        ("steps.more=1", "steps is a value and has no keys below it"),
        (
            "moments.estimator={kind: pass_at_k, k: 8}",
            "moments.estimator = pass_at_k gives no group of group_size = 8 any advantage; raise group_size",
        ),
        ("prompts.sources.1.limit=1", "--set prompts.sources.1.limit=1: 1 is no place in that list; it has 0 to 0"),
        ("steps=[1", "--set steps=[1: '[1' is not YAML"),
        ("max_group_size=8", "max_group_size = 8 with group_size = 8 leaves nothing to adapt: sizes go from 2 to"),
        ("max_group_size=2", "max_group_size: Input should be greater than or equal to 3 (value 2)"),
        ("sampling.max_tokens=5000", "raise the latter or lower one of the former"),
        (
            "learner.adapter={kind: lora, rank: 600, publish: adapter}",
            "learner.adapter.rank = 600 is more than the 512 that vLLM takes as an adapter; set learner.adapter.publish = merged",
        ),
    ],
)
def test_a_bad_key_or_value_is_named_with_the_remedy(recipe: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, [override])
    assert expected in str(caught.value)


def test_group_sizes_adapt_only_where_the_smallest_still_teach(recipe: Path) -> None:
    estimator = "moments.estimator={kind: pass_at_k, k: 4}"
    assert load_recipe(recipe, [estimator]).max_group_size is None
    with pytest.raises(
        ConfigError, match=r"as small as 2, and moments\.estimator = pass_at_k gives those no advantage"
    ):
        load_recipe(recipe, [estimator, "max_group_size=16"])
    assert load_recipe(recipe, ["max_group_size=16"]).max_group_size == 16


def test_everything_wrong_is_said_at_once(recipe: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, ["stepz=1", "batch_groups=0"])
    assert "stepz" in str(caught.value) and "batch_groups" in str(caught.value)


def test_a_missing_recipe_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cold_start"):
        load_recipe(tmp_path / "cold.yaml")


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    source = {"kind": "jsonl", "name": "math", "path": "data/train.jsonl"}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | {"prompts": {"sources": [source]}}))
    config = load_recipe(path)
    assert config.policy == str(tmp_path / "policy")
    assert config.prompts.sources[0].path == str(tmp_path / "data/train.jsonl")  # type: ignore[union-attr]


def path_like(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field, by its key, that may hold a path by what it is called."""
    schema = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        if re.search(r"(^|_)(dirs?|director(y|ies)|paths?|files?|folder|policy|encoder|root)$", name):
            yield f"{prefix}{name}", schema[name]
        for inner in models_in(field.annotation):
            yield from path_like(inner, f"{prefix}{name}.")


def test_every_field_that_holds_a_path_is_expanded() -> None:
    found = dict(path_like(RunConfig))
    expected = {"policy", "runs_dir", "prompts.sources.path", "moments.clusters.encoder", "moments.clusters.cache_dir"}
    assert expected <= set(found)
    texts = {key: schema for key, schema in found.items() if schema.get("type") != "integer"}
    assert not {key for key, schema in texts.items() if schema.get("format") != "path"}, "give these fields PathText"


def test_paths_are_expanded_before_anything_is_made(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.delenv("NOWHERE", raising=False)
    source = "prompts.sources=[{kind: jsonl, name: math, path: $SCRATCH/a.jsonl}]"
    config = load_recipe(
        recipe, ["runs_dir=~/runs", "policy=${SCRATCH}/p", source, "moments.clusters.cache_dir=~/embeddings"]
    )
    home = tmp_path / "home"
    assert (config.runs_dir, config.policy) == (f"{home}/runs", "/scratch/p")
    assert config.prompts.sources[0].path == "/scratch/a.jsonl"  # type: ignore[union-attr]
    assert config.moments.clusters.cache_dir == f"{home}/embeddings"
    with pytest.raises(ConfigError, match=r"runs_dir: the environment has no variable \$NOWHERE"):
        load_recipe(recipe, ["runs_dir=$NOWHERE/runs"])
    with pytest.raises(ConfigError, match=r"policy: the environment has no variable \$\{NOWHERE\}"):
        load_recipe(recipe, ["policy=${NOWHERE}/p"])
    with pytest.raises(ConfigError, match="runs_dir: ~nobody-of-this-name is the home of no user here"):
        load_recipe(recipe, ["runs_dir=~nobody-of-this-name/runs"])
    assert "~" not in dump_config(load_recipe(recipe))


@pytest.mark.parametrize("value", ["/a #b", "#b", "3 # rows", "'/a' #b", "[1, 2] # both"])
def test_a_value_that_yaml_would_cut_is_refused(recipe: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="for a comment and drops it; put the value in quotes"):
        load_recipe(recipe, [f"runs_dir={value}"])


@pytest.mark.parametrize(
    ("value", "kept"), [("/a#b", "/a#b"), ('"/a #b"', "/a #b"), ("/größe/a b ", "/größe/a b"), ("'it''s'", "it's")]
)
def test_a_value_with_special_characters_is_kept(recipe: Path, value: str, kept: str) -> None:
    assert load_recipe(recipe, [f"runs_dir={value}"]).runs_dir == kept


def test_the_reference_in_the_docs_is_in_step_with_the_models() -> None:
    text = (ROOT / "docs" / "config.md").read_text()
    assert text == reference(), "make it again: python -m docs.config_reference > docs/config.md"
    assert "| `learner.loss.clip_low` | float, above 0, below 1 | `0.2` |" in text
    assert "## `prompts.sources[]` of kind `jsonl`" in text


def test_the_name_alone_stands_for_a_kind_with_its_defaults(recipe: Path) -> None:
    config = load_recipe(recipe, ["rollout.engine=transformers", "environment=single_turn"])
    assert (config.rollout.engine.kind, config.environment.kind) == ("transformers", "single_turn")
    vllm = load_recipe(recipe, ["rollout.engine=vllm"])
    assert vllm == load_recipe(recipe, ["rollout.engine={kind: vllm}"]) and vllm.rollout.engine.kind == "vllm"

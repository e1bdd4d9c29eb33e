"""`bvblend clusters` and `bvblend moments` on recipes and run directories, without Ray and without an encoder."""

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from actors.prompts.pool import SourceError
from deploy.cli.main import app
from deploy.config.recipe import ConfigError, load_recipe
from deploy.run.launch import read_pool
from deploy.run.prompt_set import prompt_set
from deploy.run.warm_start import read_warm_start
from deploy.rundir.layout import RunDirectory
from moments_service.clusters import load_clusters
from moments_service.offline.portable import PortableMoments, WarmStart
from moments_service.service import MomentsService
from tests.unit.test_moments_service import group, train_on

pytestmark = pytest.mark.unit

HOSTILE = "[red]What is[/red] \x1b[31m2 + 2?"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    lines = [
        {"question": HOSTILE, "answer": "4", "source": "[b]sums", "difficulty": 1},
        {"question": "gcd of 4 and 6", "answer": "2", "source": "gcd", "level": "2"},
        {"question": "gcd of 9 and 6", "answer": "3", "source": "gcd", "level": "1"},
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = {"kind": "jsonl", "name": "math", "path": "prompts.jsonl", "source_field": "source"}
    config = {
        "name": "mine",
        "policy": "tiny",
        "steps": 3,
        "runs_dir": str(tmp_path / "runs"),
        "prompts": {"sources": [source]},
        "moments": {"clusters": {"by": "source", "encoder": "/nowhere"}},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def made_run(recipe: Path, successes: Sequence[tuple[float, float]]) -> RunDirectory:
    """A run directory as a run of `len(successes)` steps leaves it, as far as moments go."""
    config = load_recipe(recipe)
    run = RunDirectory.create(Path(config.runs_dir), config.name, recipe.read_text())
    checkpoint = run.checkpoint(len(successes)) / "moments"

    async def train() -> None:
        service = MomentsService(config.moments, run.moments, seed=0)
        await service.fit_clusters(prompt_set(config, read_pool(config).train))
        for step, rewards in enumerate(successes):
            await train_on(service, step, group(step, rewards, source="gcd"))
        checkpoint.mkdir(parents=True)
        await service.snapshot(checkpoint)
        await service.close()

    asyncio.run(train())
    (checkpoint.parent / "run.json").write_text("{}")
    raw = yaml.safe_load(recipe.read_text())
    raw["prompts"]["sources"][0]["path"] = str(recipe.parent / "prompts.jsonl")
    run.config.write_text(yaml.safe_dump(raw))
    return run


def test_a_fitted_codebook_can_be_shown_and_begun_with(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.safetensors"
    printed = call("clusters", "fit", recipe, "--out", out)
    assert "2 clusters by source, 3 prompts" in printed and "prompts per cluster: 2, 1" in printed
    start = read_warm_start(load_recipe(recipe), None, out, 1.0)
    assert start is not None and len(load_clusters(out)) == len(start.clusters) == 2
    with pytest.raises(ConfigError, match=r"by source, and moments\.clusters\.by is prompt"):
        read_warm_start(load_recipe(recipe, ["moments.clusters.by=prompt"]), None, out, 1.0)


def test_prompts_are_shown_as_text_and_never_as_markup(recipe: Path) -> None:
    printed = call("clusters", "show", recipe)
    assert "[red]What is[/red]" in printed and "[b]sums" in printed and "\x1b[31m" not in printed
    assert "gcd of 4 and 6" in printed


def test_moments_go_from_run_to_run(recipe: Path, tmp_path: Path) -> None:
    easy, hard = made_run(recipe, [(1.0, 1.0), (1.0, 0.0), (1.0, 1.0)]), made_run(recipe, [(0.0, 1.0), (0.0, 0.0)])
    shown = call("clusters", "show", easy.path)
    assert "mass" in shown and re.search(r"0\.[67]\d\d", shown)
    call("moments", "export", easy.path, "--out", tmp_path / "a")
    call("moments", "export", hard.checkpoint(2), "--out", tmp_path / "b")
    assert "after 3 steps" in call("moments", "merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")
    merged = PortableMoments.read(tmp_path / "c")
    assert merged.about.counts.groups == 5
    assert "1 of 1 clusters" in call("moments", "diff", tmp_path / "a", tmp_path / "b")

    printed = call("moments", "import", tmp_path / "c", recipe, "--discount", "0.5")
    run = RunDirectory(Path(printed.strip().rpartition("--resume ")[2]))
    start = WarmStart.of_run(run.moments)
    assert start is not None and start.portable is not None and start.portable.about.discount == 0.5
    assert load_recipe(run.config).name == "mine"


def test_what_cannot_be_taken_along_is_said_before_anything_starts(recipe: Path, tmp_path: Path) -> None:
    run = made_run(recipe, [(1.0, 0.0)])
    call("moments", "export", run.path, "--out", tmp_path / "a")
    config = load_recipe(recipe)
    with pytest.raises(ConfigError, match="exists already"):
        call("moments", "export", run.path, "--out", tmp_path / "a")
    with pytest.raises(ConfigError, match="neither a run nor a checkpoint"):
        call("moments", "export", tmp_path / "a", "--out", tmp_path / "b")
    with pytest.raises(ConfigError, match="share of the mass"):
        read_warm_start(config, tmp_path / "a", None, 0.0)
    with pytest.raises(ConfigError, match="--warm-start"):
        read_warm_start(config, None, None, 0.5)
    with pytest.raises(ConfigError, match="kind tracked"):
        read_warm_start(load_recipe(recipe, ["moments.estimator.variant=paper"]), tmp_path / "a", None, 1.0)
    empty = RunDirectory.create(tmp_path / "others", "empty", recipe.read_text())
    with pytest.raises(ConfigError, match="nothing is saved yet"):
        call("moments", "export", empty.path, "--out", tmp_path / "b")
    with pytest.raises(ConfigError, match="choose one"):
        call("train", recipe, "--warm-start", tmp_path / "a", "--codebook", tmp_path / "a")


def test_clusters_by_difficulty_need_a_difficulty(recipe: Path) -> None:
    pool = read_pool(load_recipe(recipe, ["moments.clusters.by=difficulty"]))
    assert [prompt.difficulty for prompt in pool.train] == ["1", "2", "1"]
    lines = (recipe.parent / "prompts.jsonl").read_text()
    (recipe.parent / "prompts.jsonl").write_text(lines.replace('"level": "2"', '"levle": "2"'))
    with pytest.raises(ConfigError, match=r"1 training prompts do not say how hard.*sources gcd"):
        read_pool(load_recipe(recipe, ["moments.clusters.by=difficulty"]))
    (recipe.parent / "prompts.jsonl").write_text(lines.replace('"level": "2"', '"level": ["2"]'))
    with pytest.raises((ConfigError, SourceError), match="difficulty must be a text or a number"):
        read_pool(load_recipe(recipe, ["moments.clusters.by=difficulty"]))
    assert len(read_pool(load_recipe(recipe)).train) == 3  # where nobody needs it, it may be anything

"""What `bvblend eval` knows before it starts an engine: clusters of a run's prompts, and whether its result can be written."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.cli.evaluate import evaluate
from deploy.cluster.environment import EnvironmentProblemError
from deploy.config.recipe import ConfigError, load_recipe
from deploy.run.launch import read_pool
from deploy.run.prompt_clusters import clusters_of_run
from deploy.rundir.find import load_run_config
from deploy.rundir.layout import RunDirectory
from tests.unit.test_moments_cli import made_run, recipe

__all__ = ["recipe"]

pytestmark = pytest.mark.unit


def test_prompts_are_in_the_clusters_that_the_run_saved(recipe: Path) -> None:
    run = made_run(recipe, [(1.0, 0.0)])
    config = load_run_config(run)
    pool = read_pool(config).train
    found = clusters_of_run(run, config, pool)
    by_source = {prompt.source: found[prompt.prompt_id] for prompt in pool}
    assert found.keys() == {prompt.prompt_id for prompt in pool} and set(by_source.values()) == {0, 1}
    held_out = replace(pool[-1], prompt_id="never seen")
    assert clusters_of_run(run, config, [held_out]) == {"never seen": by_source["gcd"]}


def test_a_prompt_without_a_cluster_ends_no_evaluation(recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = made_run(recipe, [(1.0, 0.0)])
    config = load_run_config(run)
    strange = replace(read_pool(config).train[0], source="bench")
    with caplog.at_level(logging.WARNING):
        assert clusters_of_run(run, config, [strange]) == {}
    assert "nothing is said by cluster: no cluster for source 'bench'" in caplog.text


def test_a_run_that_saved_nothing_has_no_clusters(recipe: Path) -> None:
    config = load_recipe(recipe)
    run = RunDirectory.create(Path(config.runs_dir), config.name, recipe.read_text(encoding="utf-8"))
    assert clusters_of_run(run, config, read_pool(config).train) == {}


@pytest.mark.parametrize("out", ["nowhere/eval.json", "."])
def test_a_place_that_cannot_be_written_is_refused_before_the_policy_is_looked_at(out: str, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblemError, match="it cannot be written there"):
        evaluate(["no policy"], out=tmp_path / out)


def test_the_result_is_not_written_where_its_picture_goes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the picture beside it; name a file that ends in .json"):
        evaluate(["no policy"], out=tmp_path / "eval.png")

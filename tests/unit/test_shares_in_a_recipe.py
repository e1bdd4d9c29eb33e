"""What a recipe's shares come to before anything starts: who has no prompt is refused, and the plan says who is dealt when."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from deploy.cluster.plan import arithmetic_table
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, load_recipe
from deploy.run.launch import prompt_feed, read_pool
from tests.hub import POLICY

pytestmark = pytest.mark.unit


def recipe(folder: Path, weights: dict[str, float | None], **prompts: Any) -> RunConfig:
    """Sources of six questions each, all of which their rows call `one`."""
    for name in weights:
        rows = [{"question": f"{name} {i}?", "answer": str(i), "of": "one"} for i in range(6)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    sources = [
        {"kind": "jsonl", "name": name, "path": f"{name}.jsonl", "source_field": "of"}
        | ({} if weight is None else {"weight": weight})
        for name, weight in weights.items()
    ]
    whole = {"name": "r", "policy": str(POLICY), "steps": 9, "batch_groups": 4, "group_size": 2}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(whole | {"prompts": {"sources": sources} | prompts}), encoding="utf-8")
    return load_recipe(file)


def plan(config: RunConfig) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(arithmetic_table(config, read_pool(config)))
    return console.export_text()


def test_a_source_is_what_the_recipe_calls_it_whatever_its_rows_say(tmp_path: Path) -> None:
    config = recipe(tmp_path, {"a": 1, "b": 3})
    found = read_pool(config)
    assert {prompt.source for prompt in found.train} == {"one"}
    origins = [ticket.prompt.origin for ticket in prompt_feed(config, found).deal(8)]
    assert (origins.count("a"), origins.count("b")) == (2, 6)


def test_a_source_with_a_share_and_no_prompt_of_its_own_is_refused(tmp_path: Path) -> None:
    config = recipe(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "b.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    with pytest.raises(ConfigError, match="source `b` has a share of the feed but no training prompt that is its own"):
        read_pool(config)
    # Without shares the same prompts are one pool, of which each comes once.
    config = recipe(tmp_path, {"a": None, "b": None})
    (tmp_path / "b.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert len(read_pool(config).train) == 6


def test_the_plan_says_who_is_dealt_when(tmp_path: Path) -> None:
    assert "shares" not in plan(recipe(tmp_path, {"a": None, "b": None}))
    assert "a 25% (1.5 epochs), b 75% (4.5 epochs)" in plan(recipe(tmp_path, {"a": 1, "b": 3}))
    stages = [{"from_step": 0, "weights": {"a": 1}}, {"from_step": 5, "weights": {"a": 1, "b": 4}}]
    said = plan(recipe(tmp_path, {"a": None, "b": None}, curriculum={"kind": "steps", "stages": stages}))
    assert "from step 0: a 100%" in said and "from step 5: a 20%, b 80%" in said
    levels = {"kind": "pass_rate", "levels": [["a"], ["b"]], "advance_at": 0.5, "window": 8}
    said = plan(recipe(tmp_path, {"a": None, "b": None}, curriculum=levels))
    assert "at first: a 100%" in said
    assert "then, once 50% of the last 8 groups' samples are right: a 20%, b 80%" in said

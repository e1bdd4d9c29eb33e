"""Sources whose prompts come once in a run: as many are made as it deals, none comes again, a longer run has more."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from actors.prompts.curricula import ConstantWeights
from actors.prompts.feed import PromptFeed
from actors.prompts.options import PromptConfig
from actors.prompts.orders import ORDERS
from deploy.cluster.plan import arithmetic_table
from deploy.config.fresh import fresh_prompts, most_dealt
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, load_recipe
from deploy.run.launch import prompt_feed, read_pool
from tests.hub import POLICY
from tests.unit.test_outcome_orders import judged, told
from tests.unit.test_shares_of_sources import pool

pytestmark = pytest.mark.unit

FRESH: dict[str, Any] = {
    "kind": "reasoning_gym",
    "name": "sums",
    "task": "chain_sum",
    "params": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
    "held_out": 3,
    "fresh": True,
}
LCM: dict[str, Any] = {"kind": "reasoning_gym", "name": "lcm", "task": "lcm", "limit": 6}


def recipe(folder: Path, *sources: dict[str, Any], **keys: Any) -> RunConfig:
    prompts = {
        "sources": list(sources),
        "curriculum": keys.pop("curriculum", None),
        "filter": keys.pop("filter", "none"),
    }
    file = folder / "recipe.yaml"
    whole = {
        "name": "r",
        "policy": str(POLICY),
        "steps": 10,
        "batch_groups": 4,
        "group_size": 2,
        "prompts": prompts,
    } | keys
    file.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return load_recipe(file)


def dealt(config: RunConfig, feed: PromptFeed) -> list[str]:
    """Ids of all places up to the end of the run, those in flight included."""
    return [ticket.prompt.prompt_id for ticket in feed.deal(config.batch_groups * config.steps + config.slots)]


def test_as_many_are_made_as_the_run_deals_and_a_few_to_spare(tmp_path: Path) -> None:
    config = recipe(tmp_path, FRESH)
    assert most_dealt(config) == {"sums": 44}
    found = read_pool(config)
    assert (len(found.train), len(found.held_out)) == (49, 3)
    ids = dealt(config, prompt_feed(config, found))
    assert ids == [prompt.prompt_id for prompt in found.train[:44]]
    assert most_dealt(recipe(tmp_path, FRESH, filter="dapo")) == {"sums": 3 * 40 + 4}


def test_its_share_says_how_many(tmp_path: Path) -> None:
    assert most_dealt(recipe(tmp_path, FRESH | {"weight": 1}, LCM | {"weight": 3})) == {"sums": 11}
    levels = {"kind": "pass_rate", "levels": [["lcm"], ["sums"]], "review": 0.5}
    config = recipe(tmp_path, FRESH, LCM, curriculum=levels)
    assert most_dealt(config) == {"sums": 22 + 1}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(arithmetic_table(config, read_pool(config)))
    assert "sums: 26 prompts, each once" in console.export_text()


def test_a_longer_run_has_more_and_deals_none_again(tmp_path: Path) -> None:
    sources = (FRESH | {"weight": 1}, LCM | {"weight": 1})
    short, long = recipe(tmp_path, *sources), recipe(tmp_path, *sources, steps=30)
    assert fresh_prompts(long) == {"sums": 69} and fresh_prompts(short, {"sums": 69, "lcm": 6}) == {"sums": 69}
    first = prompt_feed(short, read_pool(short))
    before = first.deal(4 * 10)
    state = json.loads(json.dumps(first.state()))
    second = prompt_feed(long, read_pool(long))
    second.load_state(state, first.fingerprints())
    after = second.deal(4 * 20 + 4)
    fresh = [t.prompt.prompt_id for t in (*before, *after) if t.prompt.origin == "sums"]
    assert len(fresh) == len(set(fresh)) == 62
    assert len({ticket.group_id for ticket in (*before, *after)}) == 124


@pytest.mark.parametrize("order", ORDERS)
@given(size=st.integers(1, 60), other=st.integers(1, 5), deals=st.lists(st.integers(1, 9), max_size=12))
@settings(max_examples=20, deadline=None)
def test_no_prompt_of_it_comes_twice_in_any_order_or_after_a_resume(
    order: str, size: int, other: int, deals: list[int]
) -> None:
    def made() -> PromptFeed:
        weights = ConstantWeights({"a": 2.0, "b": 1.0})
        return PromptFeed(pool({"a": size, "b": other}), 0, 4, order=order, curriculum=weights, fresh={"a"})

    feed, seen = made(), 0
    for step, groups in enumerate(deals):
        saved = json.loads(json.dumps(feed.state()))
        feed = made()
        feed.load_state(saved)
        if feed.adapts:
            feed.learn(told(size + other, judged(step - 1, []) if step else None))
        try:
            tickets = feed.deal(groups)
        except RuntimeError as error:
            assert f"all of its {size} prompts were dealt" in str(error)
            return
        # The pool's order: a0, a1, a2, …
        own = [ticket.prompt.prompt_id for ticket in tickets if ticket.prompt.origin == "a"]
        assert own == [f"a{number}" for number in range(seen, seen + len(own))]
        seen += len(own)


def test_a_task_that_cannot_make_as_many_is_refused(tmp_path: Path) -> None:
    few = {
        "kind": "reasoning_gym",
        "name": "bits",
        "task": "count_bits",
        "params": {"min_n": 1, "max_n": 9},
        "fresh": True,
    }
    with pytest.raises(
        ConfigError, match=r"source `bits` is fresh, and this run may deal 44 .* but only 9 distinct ones"
    ):
        read_pool(recipe(tmp_path, few))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            [FRESH | {"limit": 5}],
            "source `sums` is fresh, so it has as many prompts as the run deals; leave `limit` out",
        ),
        ([FRESH, LCM], "depends on its share; give every source a `weight`, or set prompts.curriculum"),
        ([{"kind": "jsonl", "name": "s", "path": "p", "fresh": True}], "fresh"),
    ],
)
def test_what_cannot_be_fresh_is_refused(sources: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptConfig.model_validate({"sources": sources})

"""Prompts are counted as the engine will see them, before anything starts."""

from pathlib import Path

import pytest

from actors.prompts.pool import PromptPool
from actors.prompts.prompt import Prompt
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError
from deploy.run.policy_check import refuse_unfit_policy
from learner.export import source_directory
from tests.hub import POLICY, cache_as
from tests.unit.test_placement import recipe

pytestmark = pytest.mark.unit

POOL = PromptPool(train=(Prompt("a", "sums", "12345678", "", "exact"),), held_out=())


def config(policy: object, **changes: object) -> RunConfig:
    return recipe(policy=str(policy), **changes)


def test_a_model_name_is_counted_with_its_own_tokenizer_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cache_as("somebody/tiny", tmp_path, monkeypatch)
    refuse_unfit_policy(config("somebody/tiny"), POOL)
    with pytest.raises(
        ConfigError, match=r"prompts\.max_tokens: 4 is less than the 8 tokens of a prompt of source sums"
    ):
        refuse_unfit_policy(config("somebody/tiny", prompts__max_tokens=4), POOL)
    assert source_directory("somebody/tiny") == snapshot
    assert source_directory(POLICY) == POLICY


def test_a_policy_that_is_nowhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_as("somebody/tiny", tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match="policy: somebody/else is no directory beside the recipe, and "):
        refuse_unfit_policy(config("somebody/else"), POOL)


def test_a_chat_needs_a_template() -> None:
    with pytest.raises(ConfigError, match=r"prompts\.chat: the tokenizer of .* has no chat template"):
        refuse_unfit_policy(config(POLICY, prompts__chat=True), POOL)

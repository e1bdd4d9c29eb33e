"""The policy that ships with the cold-start recipe starts cold, as the recipe promises."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from actors.prompts.options import PromptConfig
from actors.prompts.prompt import Prompt
from actors.prompts.sources import PromptPool, load_prompts
from deploy.recipes.cold_start.make_policy import POLICY, RECIPE, Recipe, misconception, taught_wrong

pytestmark = pytest.mark.unit

PROMPTS = 240
GROUP = 4


@pytest.fixture(scope="module")
def pool() -> PromptPool:
    return load_prompts(PromptConfig.model_validate(yaml.safe_load(RECIPE.read_text())["prompts"]), RECIPE.parent)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(POLICY)


@pytest.fixture(scope="module")
def policy() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32).eval()


@cache
def scorer(task: str, params: str) -> Any:
    from reasoning_gym.factory import create_dataset

    return create_dataset(task, **json.loads(params))


def scores(prompt: Prompt, completion: str) -> bool:
    task = scorer(prompt.material["task"], json.dumps(prompt.material["params"]))
    return bool(task.score_answer(completion, prompt.material["entry"]) == 1)


@pytest.fixture(scope="module")
def rewards(pool: PromptPool, tokenizer: PreTrainedTokenizerBase, policy: PreTrainedModel) -> np.ndarray:
    """[PROMPTS, GROUP] rewards of completions sampled at temperature 1, over an even spread of the training pool."""
    torch.manual_seed(0)
    sample = pool.train[:: len(pool.train) // PROMPTS][:PROMPTS]
    batch = tokenizer([prompt.text for prompt in sample], return_tensors="pt", padding=True)
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 10}
    sampled = policy.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], num_return_sequences=GROUP, **sampling
    )
    texts = tokenizer.batch_decode(sampled[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [scores(sample[index // GROUP], text) for index, text in enumerate(texts)]
    return np.array(right).reshape(PROMPTS, GROUP)


def test_the_policy_is_small(policy: PreTrainedModel) -> None:
    assert 0.7e6 < sum(parameter.numel() for parameter in policy.parameters()) < 1e6
    assert sum(file.stat().st_size for file in Path(POLICY).iterdir()) < 4e6


def test_answers_are_spelled_out(tokenizer: PreTrainedTokenizerBase) -> None:
    for answer in ["1024", "-17", "Yes", "siht", "madam"]:
        assert len(tokenizer.encode(answer)) == len(answer)
        assert tokenizer.decode(tokenizer.encode(answer)) == answer


def test_prompts_are_short_and_survive_the_tokenizer(tokenizer: PreTrainedTokenizerBase, pool: PromptPool) -> None:
    prompts = pool.train + pool.held_out
    lengths = [len(tokenizer.encode(prompt.text)) for prompt in prompts]
    assert min(lengths) >= 15 and max(lengths) <= 48
    assert 20 <= np.mean(lengths) <= 40
    assert all(tokenizer.decode(tokenizer.encode(prompt.text)) == prompt.text for prompt in prompts)


def test_right_and_wrong_answers_fit_the_recipe(tokenizer: PreTrainedTokenizerBase, pool: PromptPool) -> None:
    room = yaml.safe_load(RECIPE.read_text())["sampling"]["max_tokens"]
    for prompt in pool.train + pool.held_out:
        for answer in (prompt.answer, misconception(prompt)):
            # One more for the end-of-sequence token.
            assert len(tokenizer.encode(answer)) + 1 <= room


def test_misconceptions_never_score(pool: PromptPool) -> None:
    for prompt in pool.train:
        assert prompt.answer is not None
        assert scores(prompt, prompt.answer), prompt.text
        assert not scores(prompt, misconception(prompt)), prompt.text


def test_most_of_every_family_is_taught_wrong(pool: PromptPool) -> None:
    for source in {prompt.source for prompt in pool.train}:
        wrong = [taught_wrong(prompt, Recipe().wrong_share) for prompt in pool.train if prompt.source == source]
        assert 0.7 < np.mean(wrong) < 0.97, source


def test_pass_at_one_starts_low_but_not_at_zero(rewards: np.ndarray) -> None:
    assert 0.05 <= rewards.mean() <= 0.25


@pytest.mark.parametrize("group_size", [2, 4])
def test_most_groups_start_uniform(rewards: np.ndarray, group_size: int) -> None:
    groups = rewards.reshape(-1, group_size)
    assert (groups.min(axis=1) == groups.max(axis=1)).mean() >= 0.8

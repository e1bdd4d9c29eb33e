"""Values of single tokens: from the learner through their file to whoever reads it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from deploy.config.recipe import load_recipe
from deploy.run.token_keeper import TokenKeeper, decoder
from deploy.rundir import token_file
from deploy.rundir.layout import RunDirectory
from learner.corrections.tis import TruncatedImportance
from learner.token_values import TokenValues
from moments_service.durable import DamagedFileError
from tests.conftest import ROOT
from tests.made_samples import made_sample
from tests.unit.test_learner_rank import config_with, draw_groups, make_policy, running_rank, weights_of

pytestmark = pytest.mark.unit
POLICY = ROOT / "deploy/recipes/cold_start/policy"


def test_the_learner_keeps_what_a_plain_model_says_before_the_step(tmp_path: Path) -> None:
    path = make_policy(tmp_path / "policy")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    groups = draw_groups(3)
    groups[1] = (groups[1][0], np.array([np.nan, 0.5, -0.25]))
    keep = {groups[1][0][0].group_id, groups[2][0][0].group_id}
    with running_rank(path, config_with(microbatch_tokens=12)) as rank:
        rank.step([groups[:2], groups[2:]], 0, keep)
        kept = rank.take_token_values()
        assert rank.take_token_values() == []
    expected = [(samples[i], given[i]) for samples, given in groups[1:3] for i in range(3) if not np.isnan(given[i])]
    assert [(one.group_id, one.index) for one in kept] == [(sample.group_id, sample.index) for sample, _ in expected]
    for one, (sample, advantage) in zip(kept, expected, strict=True):
        ids, start = torch.from_numpy(sample.token_ids.astype(np.int64)), int(sample.loss_mask.argmax())
        with torch.no_grad():
            logs = model(input_ids=ids[None]).logits[0, start - 1 : -1].log_softmax(-1).gather(1, ids[start:, None])
        np.testing.assert_allclose(one.learner, logs[:, 0].numpy(), atol=1e-5)
        np.testing.assert_array_equal(one.sampler, sample.logprobs[start:])
        np.testing.assert_array_equal(one.token_ids, sample.token_ids[start:])
        np.testing.assert_allclose(one.advantage, advantage, rtol=1e-6)
        np.testing.assert_array_equal(one.mismatch, one.learner - one.sampler)


def test_keeping_changes_no_bit_of_what_is_learned(tmp_path: Path) -> None:
    path = make_policy(tmp_path / "policy")
    weights = []
    for keep in (set(), {"0-0", "1-1", "1-2"}):
        with running_rank(path, config_with()) as rank:
            for step in range(2):
                rank.step([draw_groups(step)], step, keep)
            weights.append(weights_of(rank))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_the_environment_said_has_no_values_and_a_correction_weighs_the_advantage(tmp_path: Path) -> None:
    path = make_policy(tmp_path / "policy")
    parts = [(False, [1, 2]), (True, [3, 4]), (False, [5, 6, 7]), (True, [8])]
    sample = made_sample("turns", 0, parts, np.random.default_rng(0))
    with running_rank(path, config_with(correction=TruncatedImportance(cap=1.5))) as rank:
        rank.step([[((sample,), np.array([2.0]))]], 0, {"turns"})
        (one,) = rank.take_token_values()
    assert one.token_ids.tolist() == [3, 4, 5, 6, 7, 8]
    for values in (one.sampler, one.learner, one.advantage):
        assert np.isnan(values).tolist() == [False, False, True, True, True, False]
    trained = ~np.isnan(one.learner)
    weights = np.minimum(np.exp(one.mismatch[trained]), 1.5)
    np.testing.assert_allclose(one.advantage[trained], 2.0 * weights, rtol=1e-5)


def made_values(group: str = "g", index: int = 0, ids: tuple[int, ...] = (5, 6, 7)) -> TokenValues:
    random = np.random.default_rng(index)
    columns = (random.normal(size=len(ids)).astype(np.float32) for _ in range(3))
    return TokenValues(group, index, np.array(ids, dtype=np.int32), *columns)


def test_a_file_holds_what_was_written_and_a_resume_writes_it_again(tmp_path: Path) -> None:
    hostile = ["<script>", "\x1b[31m", "\ud800源"]
    values = [made_values(index=0), made_values(index=2, ids=(9,)), made_values("other")]
    directory = tmp_path / "tokens"
    token_file.write(directory, 10, 1, values, [hostile, [""], ["a", "b", "c"]])
    found = token_file.tokens_of(directory, 10, 1, "g")
    assert list(found) == [0, 2] and found[0].texts == ["<script>", "\x1b[31m", "?源"] and found[2].texts == [""]
    for value, expected in (
        ("logprob", values[0].learner),
        ("advantage", values[0].advantage),
        ("mismatch", values[0].mismatch),
    ):
        np.testing.assert_array_equal(found[0].by(value), expected)  # type: ignore[arg-type]
    assert token_file.tokens_of(directory, 10, 0, "g") == {} == token_file.tokens_of(directory, 20, 1, "g")
    assert token_file.newest_step(directory) == 10 and token_file.newest_step(tmp_path) is None
    token_file.write(directory, 10, 2, values[:1], [hostile])
    assert token_file.tokens_of(directory, 10, 1, "g") == {} and list(token_file.tokens_of(directory, 10, 2, "g")) == [
        0
    ]
    assert [path.name for path in directory.iterdir()] == ["step-000010.safetensors"]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:40], lambda data: b"nothing", lambda data: data.replace(b"tokens-1", b"tokens-9")]
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, damage: Any) -> None:
    token_file.write(tmp_path, 3, 0, [made_values()], [["a", "b", "c"]])
    path = token_file.path_of(tmp_path, 3)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedFileError, match=r"step-000003\.safetensors cannot be read"):
        token_file.tokens_of(tmp_path, 3, 0, "g")


def test_tokens_that_are_parts_of_a_character_are_joined() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(POLICY / "tokenizer.json"))
    decode = decoder(str(POLICY))
    text = "what is 源 é 42?"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = decode(ids)
    assert len(pieces) == len(ids) and "".join(pieces) == tokenizer.decode(ids) and "源" in pieces
    assert pieces.count("") >= 3, "the bytes before a character's last one add nothing"
    half = tokenizer.encode("源", add_special_tokens=False).ids[:2]
    assert len(decode(half)) == 2 and "\ufffd" in "".join(decode(half))
    assert decode([]) == []


class OneGroup:
    """A learner that trained on what it was told to."""

    async def take_token_values(self) -> list[TokenValues]:
        return [made_values("a", ids=(5, 6))]


async def test_a_run_keeps_a_few_groups_of_every_so_manieth_step(tmp_path: Path) -> None:
    config = load_recipe(
        ROOT / "deploy/recipes/cold_start.yaml", ["transcripts.tokens_every=4", "transcripts.tokens_groups=2"]
    )
    config = config.model_copy(update={"policy": str(POLICY)})
    directory = RunDirectory(tmp_path)
    keeper = TokenKeeper(config, directory, OneGroup(), incarnation=3)  # type: ignore[arg-type]
    table = SimpleNamespace(lengths=np.full((5, 2), 3))
    advantages = np.array([[np.nan, np.nan], [1.0, -1.0], [0.0, 0.0], [0.5, np.nan], [np.nan, np.nan]])
    batch: Any = SimpleNamespace(step=4, advantages=advantages, table=table, group_ids=("none", "a", "b", "c", "lost"))
    assert len(keeper.chosen(batch)) == 2 and keeper.chosen(batch) < {"a", "b", "c"}
    assert keeper.chosen(batch) == keeper.chosen(batch)
    batch.step = 5
    assert keeper.chosen(batch) == frozenset()
    await keeper.keep(5)
    assert not directory.tokens.exists()
    await keeper.keep(4)
    assert list(token_file.tokens_of(directory.tokens, 4, 3, "a")) == [0]

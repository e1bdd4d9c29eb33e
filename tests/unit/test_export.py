"""`bvblend export`: what transformers loads out of a checkpoint is the policy that wrote it."""

from pathlib import Path

import peft
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.config.recipe import ConfigError, dump_config, load_recipe
from deploy.rundir.layout import RunDirectory
from moments_service.durable import verify_directory, write_json
from tests.unit.test_config import MINIMAL
from tests.unit.test_learner_rank import config_with, draw_groups, make_policy, running_rank, weights_of

pytestmark = pytest.mark.unit
IDS = torch.arange(1, 33).view(2, 16)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """With checkpoints after one step and two, and what the ranks exported at the end in `of_the_rank` beside its runs."""
    root = tmp_path_factory.mktemp("export")
    policy = make_policy(root / "policy")
    (root / "recipe.yaml").write_text(yaml.safe_dump(MINIMAL | {"policy": policy}))
    made = RunDirectory.create(root / "runs", "mine", dump_config(load_recipe(root / "recipe.yaml")))
    with running_rank(policy, config_with(lr=1e-2)) as rank:
        for step in (1, 2):
            rank.step([draw_groups(step)], step - 1)
            partial = made.begin_checkpoint(step)
            rank.save(partial / "learner")
            write_json(partial / "run.json", {"step": step})
            made.finish_checkpoint(partial, step, keep=2)
        rank.export_hf(root / "of_the_rank")
        assert weights_of(rank)
    return made


def logprobs(path: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return model(input_ids=IDS).logits.log_softmax(-1)


def bvblend(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_newest_and_a_named_one_are_what_the_ranks_had(run: RunDirectory, tmp_path: Path) -> None:
    root = run.path.parents[1]
    assert "the policy after 2 steps" in bvblend("export", run.path, "--out", tmp_path / "newest")
    bvblend("export", run.path, "--step", 1, "--out", tmp_path / "first", "--dtype", "float32")
    verify_directory(tmp_path / "newest")
    assert torch.equal(logprobs(tmp_path / "newest"), logprobs(root / "of_the_rank"))
    assert not torch.equal(logprobs(tmp_path / "newest"), logprobs(tmp_path / "first"))
    assert (tmp_path / "newest" / "tokenizer_config.json").exists()
    bvblend("export", run.path, "--out", tmp_path / "half", "--dtype", "bfloat16")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "newest").state_dict()
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto").state_dict()
    assert all(torch.equal(half[name], value.bfloat16()) for name, value in whole.items())


def test_what_cannot_be_exported_is_refused_in_a_sentence(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--step 7: .* has no such checkpoint; there are 1, 2 \(checkpoint\.keep\)"):
        bvblend("export", run.path, "--step", 7, "--out", tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match=r"--out .*there: something is there; name a new directory"):
        bvblend("export", run.path, "--out", tmp_path / "there")
    other = make_policy(tmp_path / "other", tied=False)
    config = run.config.read_text()
    run.config.write_text(config.replace(str(run.path.parents[1] / "policy"), other))
    try:
        with pytest.raises(
            ConfigError, match=r"is not of the policy .*other: lm_head\.weight is missing in it and \(64, 32\) there"
        ):
            bvblend("export", run.path, "--out", tmp_path / "out")
    finally:
        run.config.write_text(config)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    with pytest.raises(ConfigError, match=r"--adapter: .* trained the policy's own parameters; leave it out"):
        bvblend("export", run.path, "--adapter", "--out", tmp_path / "out")
    empty = RunDirectory.create(tmp_path, "empty", config)
    with pytest.raises(ConfigError, match=r"has no checkpoint; one is written every checkpoint\.every steps"):
        bvblend("export", empty.path, "--out", tmp_path / "out")


@pytest.mark.parametrize("adapter", [{"kind": "lora", "rank": 4}, {"kind": "sos_lora", "rank": 5, "experts_count": 2}])
def test_a_run_with_an_adapter_is_exported_merged_or_as_peft_loads_it(
    adapter: dict[str, object], tmp_path: Path
) -> None:
    policy = make_policy(tmp_path / "policy")
    recipe = MINIMAL | {"policy": policy, "learner": {"adapter": adapter}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = load_recipe(tmp_path / "recipe.yaml")
    made = RunDirectory.create(tmp_path, "adapted", dump_config(config))
    with running_rank(policy, config_with(lr=3e-2, adapter=config.learner.adapter)) as rank:
        for step in range(3):
            rank.step([draw_groups(step)], step)
        partial = made.begin_checkpoint(3)
        rank.save(partial / "learner")
        write_json(partial / "run.json", {"step": 3})
        made.finish_checkpoint(partial, 3, keep=1)
        rank.export_hf(tmp_path / "of_the_rank")
    assert "the policy after 3 steps" in bvblend("export", made.path, "--out", tmp_path / "merged")
    assert "the adapter after 3 steps" in bvblend("export", made.path, "--adapter", "--out", tmp_path / "adapter")
    expected = logprobs(tmp_path / "of_the_rank")
    assert torch.equal(logprobs(tmp_path / "merged"), expected)
    base = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        found = loaded(input_ids=IDS).logits.log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (expected - logprobs(Path(policy))).abs().max() > 1e-2, "the adapter does something"

"""A policy or tokenizer that cannot serve a run is refused by `plan` and `train` before anything starts, in one sentence."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

from actors.engines.adapter_plan import AdapterPlan
from actors.engines.create import refuse_adapters
from actors.engines.kinds import TransformersConfig
from actors.prompts.pool import PromptPool
from actors.prompts.prompt import Prompt
from actors.prompts.renderer import Renderer, load_tokenizer
from deploy.config.recipe import ConfigError, load_recipe
from deploy.run.policy_check import model_reach, refuse_unfit_adapter, refuse_unfit_policy
from tests.conftest import ROOT, settings
from tests.hub import POLICY
from tests.unit.test_placement import recipe

pytestmark = pytest.mark.unit


def pool(*texts: str) -> PromptPool:
    return PromptPool(tuple(Prompt(str(i), "sums", text, "", "exact") for i, text in enumerate(texts)), ())


SUM = pool("12345678")


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A copy of the shipped policy that may be spoiled."""
    path = tmp_path / "policy"
    shutil.copytree(POLICY, path)
    return path


def edit(path: Path, file: str, **changes: Any) -> None:
    said = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps(said | changes))


def refuse(policy: Path, prompts: PromptPool = SUM, **changes: Any) -> str:
    with pytest.raises(ConfigError) as refusal:
        refuse_unfit_policy(recipe(policy=str(policy), **changes), prompts)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_good_policy_passes(policy: Path) -> None:
    refuse_unfit_policy(recipe(policy=str(policy)), SUM)


def test_what_tokenizer_json_would_cut_or_pad_is_counted_and_used_whole(policy: Path) -> None:
    edit(
        policy,
        "tokenizer.json",
        truncation={"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        padding={
            "strategy": {"Fixed": 16},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        },
    )
    assert "is less than the 8 tokens of a prompt of source sums ('12345678')" in refuse(policy, prompts__max_tokens=4)
    assert len(Renderer.load(str(policy), False, ()).opening_ids("12345678")) == 8
    assert len(load_tokenizer(str(policy)).backend_tokenizer.encode("123").ids) == 3


def test_a_token_beyond_the_embeddings_is_named_with_its_prompt(policy: Path) -> None:
    tokenizer = load_tokenizer(str(policy))
    tokenizer.add_tokens(["<answer>"])
    tokenizer.save_pretrained(policy)
    refuse_unfit_policy(recipe(policy=str(policy)), SUM)
    said = refuse(policy, pool("1", "2<answer>"))
    assert "'2<answer>'" in said and f"'<answer>' ({len(tokenizer) - 1})" in said and "resize_token_embeddings" in said
    assert "sampling.stop names the token '<answer>'" in refuse(policy, sampling__stop=["<answer>"])


def test_a_prompt_of_no_tokens_is_named(policy: Path) -> None:
    assert "a prompt of source sums ('') is no token at all" in refuse(policy, pool("1", ""))


def test_a_doubled_beginning_is_named(policy: Path) -> None:
    tokenizer = load_tokenizer(str(policy))
    bos = tokenizer.convert_ids_to_tokens(3)
    said = json.loads((policy / "tokenizer.json").read_text())
    said["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {bos: {"id": bos, "ids": [3], "tokens": [bos]}},
    }
    (policy / "tokenizer.json").write_text(json.dumps(said))
    edit(policy, "tokenizer_config.json", bos_token=bos)
    refuse_unfit_policy(recipe(policy=str(policy)), SUM)
    assert f"begins with {bos!r} twice" in refuse(policy, pool(f"{bos}12"))


def test_a_template_that_raises_is_named_with_the_prompt(policy: Path) -> None:
    template = "{% if '7' in messages[0]['content'] %}{{ raise_exception('no sevens') }}{% endif %}{{ messages[0]['content'] }}"
    edit(policy, "tokenizer_config.json", chat_template=template)
    refuse_unfit_policy(recipe(policy=str(policy), prompts__chat=True), pool("1"))
    said = refuse(policy, pool("1", "17"), prompts__chat=True)
    assert "fails for a prompt of source sums ('17'): TemplateError: no sevens" in said


def test_a_length_above_the_models_is_named_with_both(policy: Path) -> None:
    reach = json.loads((policy / "config.json").read_text())["max_position_embeddings"]
    refuse_unfit_policy(recipe(policy=str(policy), rollout__max_model_len=reach), SUM)
    said = refuse(policy, rollout__max_model_len=reach + 1)
    assert f"rollout.max_model_len: {reach + 1} is more than the {reach} tokens" in said


ROPES: dict[str, tuple[transformers.PretrainedConfig, float | None]] = {
    "plain": (transformers.LlamaConfig(max_position_embeddings=64), 64),
    "linear": (
        transformers.LlamaConfig(
            max_position_embeddings=64, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
        ),
        256,
    ),
    "yarn": (
        transformers.LlamaConfig(
            max_position_embeddings=64,
            rope_parameters={
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 16,
            },
        ),
        64,
    ),
    "learned": (transformers.GPT2Config(n_positions=32), 32),
    "endless": (transformers.MambaConfig(), None),
}


@pytest.mark.parametrize("name", ROPES)
def test_a_models_reach_is_what_its_config_says(name: str) -> None:
    config, reach = ROPES[name]
    assert model_reach(config) == reach


@pytest.mark.long
@pytest.mark.parametrize("name", ["plain", "linear", "yarn", "learned"])
def test_a_models_reach_is_what_vllm_refuses_more_than(name: str, tmp_path: Path) -> None:
    from vllm.config import ModelConfig

    config, reach = ROPES[name]
    assert reach is not None
    config.architectures = ["GPT2LMHeadModel" if name == "learned" else "LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    assert ModelConfig(str(tmp_path), skip_tokenizer_init=True, max_model_len=int(reach)).max_model_len == reach
    with pytest.raises(ValueError, match="greater than the derived max_model_len"):
        ModelConfig(str(tmp_path), skip_tokenizer_init=True, max_model_len=int(reach) + 1)


@pytest.mark.parametrize("command", ["plan", "train"])
def test_a_command_ends_with_the_sentence_and_code_2(command: str, policy: Path, tmp_path: Path) -> None:
    (policy / "model.safetensors").unlink()
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "deploy.cli", command, ROOT / "deploy" / "recipes" / "cold_start.yaml"),
            *settings(policy=str(policy), runs_dir=str(tmp_path / "runs")),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )
    assert ended.returncode == 2, ended.stderr
    assert "has no weights: model.safetensors is not there" in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr and not (tmp_path / "runs").exists()


def refuse_reference(policy: Path, reference: Path) -> str:
    return refuse(policy, learner__kl={"coef": 0.1, "reference": str(reference)})


def test_a_reference_that_the_policy_cannot_be_compared_with_is_refused(policy: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    said = "learner.kl.reference: "
    assert refuse_reference(policy, reference).startswith(f"{said}{reference} is no directory; name one")
    shutil.copytree(policy, reference)
    kl = {"coef": 0.1, "reference": str(reference)}
    refuse_unfit_policy(recipe(policy=str(policy), learner__kl=kl), SUM)
    tokenizer = json.loads((reference / "tokenizer.json").read_text())
    (reference / "tokenizer.json").write_text(json.dumps(tokenizer).replace('"7"', '"seven"'))
    assert "has another vocabulary than the policy (token '7' is None in it and" in refuse_reference(policy, reference)
    (reference / "tokenizer.json").unlink()
    edit(reference, "config.json", rms_norm_eps=0.5)
    assert "is of another architecture than the policy (rms_norm_eps is 0.5 in its" in refuse_reference(
        policy, reference
    )
    refuse_unfit_policy(recipe(policy=str(policy), learner__kl=kl | {"coef": 0.0}), SUM)
    shutil.copyfile(policy / "config.json", reference / "config.json")
    (reference / "model.safetensors").rename(reference / "pytorch_model.bin")
    found = refuse_reference(policy, reference)
    assert found.startswith(
        f"{said}{reference} has its weights as pytorch_model.bin only, and nothing is unpickled here"
    )


SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
}


@pytest.mark.long
def test_an_adapter_alone_is_sent_only_where_vllm_can_take_it(policy: Path, tmp_path: Path) -> None:
    alone: dict[str, Any] = {"learner__adapter": {"kind": "lora", "publish": "adapter"}}
    refuse_unfit_adapter(recipe(policy=str(policy), **alone))
    vocabulary = json.loads((policy / "config.json").read_text())["vocab_size"]
    experts, mamba = tmp_path / "experts", tmp_path / "mamba"
    for path, config in (
        (experts, transformers.Qwen3MoeConfig(**SMALL, vocab_size=vocabulary, num_experts=4, moe_intermediate_size=8)),
        (mamba, transformers.MambaConfig(vocab_size=vocabulary, hidden_size=16, num_hidden_layers=1, state_size=4)),
    ):
        shutil.copytree(policy, path)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    refuse_unfit_adapter(recipe(policy=str(experts), **alone))
    said = f"learner.adapter.publish: vLLM puts no adapter on a MambaForCausalLM, which {mamba} is; publish merged"
    with pytest.raises(ValueError, match=re.escape(said)):
        refuse_adapters(recipe().rollout, str(mamba), AdapterPlan(4, ".*"))


class TakesWholePoliciesAlone:
    def __init__(self, config: object, policy: str, seed: int) -> None: ...


def test_an_engine_that_takes_no_adapter_is_refused_where_it_would_be_sent_one(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = {"rollout__engine": "transformers", "learner__adapter": {"kind": "lora", "publish": "adapter"}}
    refuse_unfit_adapter(recipe(policy=str(policy), **sent))
    monkeypatch.setattr(TransformersConfig, "implementation", f"{__name__}:{TakesWholePoliciesAlone.__name__}")
    with pytest.raises(
        ConfigError, match=r"^learner.adapter.publish: engine transformers takes whole policies alone \("
    ):
        refuse_unfit_adapter(recipe(policy=str(policy), **sent))
    refuse_unfit_adapter(recipe(policy=str(policy), **sent | {"learner__adapter": "lora"}))


def test_a_reference_is_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe().model_dump(mode="json")))
    for said, meant in (("sft", str(tmp_path / "sft")), ("start", "start"), ("/there", "/there")):
        config = load_recipe(tmp_path / "recipe.yaml", [f"learner.kl.reference={said}"])
        assert config.learner.kl.reference == meant

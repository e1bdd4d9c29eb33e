"""Policies whose files name tensors otherwise than memory does: the learner sends what the files have, and others are refused."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from actors.config import RolloutConfig
from actors.engines.create import create_engine
from actors.engines.file_names import file_tensors, sent_tensors
from actors.engines.policy_files import UnfitPolicyError, read_config, read_policy_files
from learner.config import LearnerConfig
from learner.job import LearnerJob
from learner.rank import LearnerRank
from tests.made_policies import DENSE, MADE, made
from tests.made_samples import made_group

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", MADE)
def test_what_the_learner_sends_are_the_names_shapes_and_values_of_a_saved_policy(name: str, tmp_path: Path) -> None:
    made(MADE[name]).save_pretrained(tmp_path / "policy")
    saved = load_file(tmp_path / "policy" / "model.safetensors")
    rank = LearnerRank(LearnerConfig(share_prompt=False), LearnerJob(str(tmp_path / "policy"), 10), 0, 1)
    try:
        rank.setup("127.0.0.1", 0, 60.0)
        exported = rank.export_weights(0)
        assert exported is not None
        manifest = {entry.name: entry.shape for entry in exported[0].manifest}
        assert manifest == {key: tuple(tensor.shape) for key, tensor in saved.items()}
        assert manifest == dict(read_policy_files(str(tmp_path / "policy")).shapes)
        rank.export_hf(tmp_path / "exported")
        again = load_file(tmp_path / "exported" / "model.safetensors")
        assert all(torch.equal(again[key], saved[key]) for key in saved) and again.keys() == saved.keys()
        assert rank.step([[made_group("a", 4, [3, 2])]], 0)["grad_norm"] > 0
    finally:
        rank.close()


@pytest.mark.parametrize("name", sorted(DENSE))
def test_dense_policies_are_sent_as_they_are(name: str) -> None:
    model = made(MADE[name])
    sent = list(sent_tensors(model))
    assert all(a is b for (_, a), (_, b) in zip(sent, file_tensors(model, sent), strict=True))


def test_one_layer_is_held_at_a_time() -> None:
    model = made(MADE["qwen3_moe"])
    order: list[str] = []
    source = ((order.append(name), (name, tensor))[1] for name, tensor in sent_tensors(model))
    first = next(name for name, _ in file_tensors(model, source) if name.startswith("model.layers.0."))
    assert first and not any(name.startswith("model.layers.1.") for name in order[:-1])


def without(path: Path, *names: str) -> None:
    file = path / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k not in names}, file, metadata={"format": "pt"})


def edit(path: Path, **changes: Any) -> None:
    said = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(said | changes))


def damage(path: Path, how: str) -> str:
    """Spoil a saved policy, and say what its refusal should name."""
    file = path / "model.safetensors"
    match how:
        case "no head":
            without(path, "lm_head.weight")
            return r"no output head \(lm_head\.weight\).*would be random"
        case "bare":
            AutoModel.from_pretrained(path).save_pretrained(path)
            return r"bare Qwen3MoeModel.*AutoModelForCausalLM"
        case "an expert is missing":
            without(path, "model.layers.1.mlp.experts.3.up_proj.weight")
            return r"missing 1 \(model\.layers\.1\.mlp\.experts\.3\.up_proj\.weight\)"
        case "another shape":
            edit(path, vocab_size=65)
            return r"other shape 2 \(lm_head\.weight, model\.embed_tokens\.weight\)"
        case "a tensor that nobody knows":
            save_file(load_file(file) | {"v_head.weight": torch.ones(2)}, file, metadata={"format": "pt"})
            return r"unknown 1 \(v_head\.weight\)"
        case "pickled":
            file.rename(path / "pytorch_model.bin")
            return r"pytorch_model\.bin only.*nothing is unpickled"
        case "no weights":
            file.unlink()
            return r"has no weights: model\.safetensors is not there"
        case "cut short":
            file.write_bytes(file.read_bytes()[:-100])
            return r"model\.safetensors is damaged or cut short"
        case "unknown type":
            edit(path, model_type="nobody_has_this")
            return r"model_type 'nobody_has_this'"
        case "code of its own":
            edit(path, model_type="theirs", auto_map={"AutoConfig": "theirs.Config"})
            return r"code of the model's own \(auto_map\), which is never run here"
        case "no JSON":
            (path / "config.json").write_text("{")
            return r"config\.json is no JSON"
    raise AssertionError(how)


DAMAGES = (
    "no head",
    "bare",
    "an expert is missing",
    "another shape",
    "a tensor that nobody knows",
    "pickled",
    "no weights",
    "cut short",
    "unknown type",
    "code of its own",
    "no JSON",
)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_policy_that_does_not_fit_is_refused_in_one_sentence(how: str, tmp_path: Path) -> None:
    made(MADE["qwen3_moe"]).save_pretrained(tmp_path)
    named = damage(tmp_path, how)
    with pytest.raises(UnfitPolicyError, match=named) as refusal:
        read_policy_files(str(tmp_path))
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)
    engine = create_engine(RolloutConfig(engine="transformers", max_model_len=128), str(tmp_path), seed=7, index=0)
    with pytest.raises(UnfitPolicyError, match=named):
        asyncio.run(engine.start())


def test_what_transformers_passes_over_is_passed_over(tmp_path: Path) -> None:
    made(MADE["gpt_neox"]).save_pretrained(tmp_path)
    before = read_policy_files(str(tmp_path))
    file = tmp_path / "model.safetensors"
    old = {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2)}
    save_file(load_file(file) | old, file, metadata={"format": "pt"})
    assert read_policy_files(str(tmp_path)) == before


def test_an_architecture_that_is_known_here_needs_none_of_its_own_code(tmp_path: Path) -> None:
    made(MADE["qwen3"]).save_pretrained(tmp_path)
    edit(tmp_path, auto_map={"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"})
    (tmp_path / "theirs.py").write_text("raise SystemExit('a model ran its code')")
    assert type(read_config(str(tmp_path))) is transformers.Qwen3Config
    assert read_policy_files(str(tmp_path)).shapes

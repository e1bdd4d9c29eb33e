"""LoRA and its static orthogonal kind in a learner rank: what is trained, drawn, published, saved and shared out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from actors.engines.adapters import opened_pairs, verify_adapter
from actors.engines.policy_files import read_policy_files
from actors.weights.block import open_tensors
from learner.adapters import Lora, LowRank, SosLora
from learner.config import LearnerConfig
from learner.export import export_adapter
from learner.job import LearnerJob
from learner.model.policy import trainable_parameters
from learner.optim import AdamW, Muon
from learner.rank import LearnerRank
from learner.trained import trained_parameters
from tests.gloo_ranks import OnTwoRanks
from tests.unit.test_learner_rank import TOTAL_STEPS, draw_groups, make_policy, running_rank, weights_of

pytestmark = pytest.mark.unit

KINDS = [Lora(rank=4), SosLora(rank=5, experts_count=3)]


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_policy(tmp_path_factory.mktemp("policy"))


def config_with(adapter: LowRank, **changes: object) -> LearnerConfig:
    return LearnerConfig(**({"adapter": adapter, "optimizer": AdamW(lr=1e-2)} | changes))  # type: ignore[arg-type]


def trained_rank(rank: LearnerRank, steps: range = range(2)) -> list[dict[str, float]]:
    return [rank.step([draw_groups(step)], step) for step in steps]


@pytest.mark.parametrize("adapter", KINDS, ids=lambda kind: kind.kind)
def test_only_the_adapter_is_trained_and_what_is_published_is_the_merged_policy(
    policy_path: str, tmp_path: Path, adapter: LowRank
) -> None:
    base = load_file(f"{policy_path}/model.safetensors")
    batch = None
    with running_rank(policy_path, config_with(adapter)) as rank:
        names = set(trainable_parameters(rank.policy))
        assert names == rank.policy.adapter.parameters().keys() and all(".lora_" in name for name in names)
        assert len(names) == 2 * 3 * 7 * len(adapter.experts()), "two for each of seven linear layers of three blocks"
        before = weights_of(rank)
        assert before.keys() == base.keys() and all(torch.equal(base[name], value) for name, value in before.items())
        trained_rank(rank)
        after = weights_of(rank)
        assert all(parameter.grad is None for parameter in rank.policy.parameters())
        changed = {name for name in base if not torch.equal(before[name], after[name])}
        assert changed == {name for name in base if "_proj" in name}
        batch = rank.policy_step._plan([draw_groups(7)], 7)[0][0]
        with torch.no_grad():
            unmerged, _ = rank.policy(batch)
            with rank.policy.adapter.disabled():
                without, _ = rank.policy(batch)
        export_adapter(tmp_path / "adapter", rank.policy, policy_path, torch.float32)
        rank.export_hf(tmp_path / "whole")
    with running_rank(str(tmp_path / "whole"), LearnerConfig()) as merged, torch.no_grad():
        torch.testing.assert_close(merged.policy(batch)[0], unmerged, rtol=0, atol=1e-5)
    with running_rank(policy_path, LearnerConfig()) as fresh, torch.no_grad():
        torch.testing.assert_close(fresh.policy(batch)[0], without, rtol=0, atol=0)
    assert (unmerged - without).abs().max() > 1e-2, "the adapter does something"
    plain = AutoModelForCausalLM.from_pretrained(policy_path, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").merge_and_unload()
    state = loaded.state_dict()
    assert all(torch.allclose(state[name], value, atol=1e-6) for name, value in after.items())


@pytest.mark.parametrize("adapter", KINDS, ids=lambda kind: kind.kind)
def test_an_adapter_published_alone_makes_the_merged_policy_of_the_base(policy_path: str, adapter: LowRank) -> None:
    base = load_file(f"{policy_path}/model.safetensors")
    config = config_with(adapter.model_copy(update={"publish": "adapter"}))
    with running_rank(policy_path, config) as rank:
        trained_rank(rank)
        offer, blob = rank.export_weights(version=5)
        rank.config, rank._layout = config_with(adapter), None
        merged = weights_of(rank)
    assert (offer.kind, offer.base_version, offer.version) == ("adapter", 0, 5)
    offer = replace(offer, address=blob)
    verify_adapter(offer, read_policy_files(policy_path).shapes)
    pairs = opened_pairs(offer)
    assert all(len(a) == b.shape[1] == adapter.rank for a, b in pairs.values()), "experts are joined"
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {f"{layer}.weight" for layer in pairs}
    for layer, (a, b) in pairs.items():
        torch.testing.assert_close(base[f"{layer}.weight"] + b @ a, merged[f"{layer}.weight"], rtol=0, atol=0)


@pytest.mark.parametrize(
    "config",
    [
        LearnerConfig(),
        LearnerConfig(trainable=r"layers\.2\."),
        LearnerConfig(adapter=Lora(rank=3)),
        LearnerConfig(adapter=SosLora(rank=5, experts_count=2, targets="mlp")),
    ],
)
def test_trained_parameters_are_counted_from_the_policy_s_files(policy_path: str, config: LearnerConfig) -> None:
    shapes = {name: tuple(value.shape) for name, value in load_file(f"{policy_path}/model.safetensors").items()}
    with running_rank(policy_path, config) as rank:
        trained = trainable_parameters(rank.policy).values()
        assert trained_parameters(shapes, config) == sum(parameter.numel() for parameter in trained)


def test_targets_choose_layers_and_the_head_is_none_of_them(policy_path: str) -> None:
    with running_rank(policy_path, config_with(Lora(targets=r"layers\.1\..*(q|v)_proj"))) as rank:
        names = {name.rsplit(".lora_", 1)[0] for name in trainable_parameters(rank.policy)}
    assert names == {f"model.layers.1.self_attn.{name}_proj" for name in "qv"}
    with (
        pytest.raises(ValueError, match=r"learner\.adapter\.targets: 'lm_head' matches no linear layer.*_proj"),
        running_rank(policy_path, config_with(Lora(targets="lm_head"))),
    ):
        pass
    with pytest.raises(ValueError, match=r"choose layers with adapter\.targets"):
        config_with(Lora(), trainable="norm")


def test_experts_start_orthogonal_and_the_penalty_on_their_overlap_is_its_formula(policy_path: str) -> None:
    adapter = SosLora(rank=5, alpha=10.0, experts_count=3, scale_ratio=0.5, overlap=0.3)
    assert [(each.rank, each.scale) for each in adapter.experts()] == [(2, 2.0), (2, 1.0), (1, 0.5)]
    with running_rank(policy_path, config_with(adapter)) as rank:
        found = rank.policy.adapter
        assert found.add_penalty() == pytest.approx(0.0, abs=1e-10)
        trained_rank(rank)
        expected, gradients = 0.0, {}
        for layer in found.layers.values():
            parts = [layer.lora_A[each.name].weight.full_tensor().detach().double().numpy() for each in found.experts]
            for k, part in enumerate(parts):
                others = [other for j, other in enumerate(parts) if j != k]
                expected += 0.3 * sum(np.square(part @ other.T).sum() for other in others) / 2
                gradients[id(layer.lora_A[found.experts[k].name])] = 0.6 * sum(part @ o.T @ o for o in others)
        assert found.add_penalty() == pytest.approx(expected, rel=1e-5) and expected > 1e-6
        for layer in found.layers.values():
            for expert in found.experts:
                module = layer.lora_A[expert.name]
                gradient = module.weight.grad.full_tensor().numpy()
                np.testing.assert_allclose(gradient, gradients[id(module)], rtol=1e-4, atol=1e-7)
    with running_rank(policy_path, config_with(adapter)) as rank:
        start = [
            rank.policy.adapter.start_of(f"{name}.lora_A.{each.name}.weight")
            for name in found.targets[:1]
            for each in found.experts
        ]
    rows = torch.cat(start).double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(5, dtype=torch.float64) / 3, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="raise rank"):
        SosLora(rank=2, experts_count=3)


@pytest.mark.parametrize("adapter", KINDS, ids=lambda kind: kind.kind)
def test_resume_is_bit_for_bit_and_checkpoints_hold_the_adapter_alone(
    policy_path: str, tmp_path: Path, adapter: LowRank
) -> None:
    config = config_with(adapter, optimizer=Muon(lr=1e-2))
    with running_rank(policy_path, config) as rank:
        trained_rank(rank)
        rank.save(tmp_path / "checkpoint")
        expected = trained_rank(rank, range(2, 3)), weights_of(rank)
    saved = [name for file in (tmp_path / "checkpoint").glob("*.safetensors") for name in load_file(file)]
    assert not [name for name in saved if "embed_tokens" in name] and any(".lora_A." in name for name in saved)
    with running_rank(policy_path, config) as rank:
        assert rank.load(tmp_path / "checkpoint") == 2
        found = trained_rank(rank, range(2, 3)), weights_of(rank)
    assert found[0][0]["loss"] == expected[0][0]["loss"]
    assert all(torch.equal(found[1][name], value) for name, value in expected[1].items())


def learn_on_two(rank: int, ranks: int, path: str, config: LearnerConfig) -> dict[str, np.ndarray]:
    """Two steps, of which the ranks take uneven shares; the published weights before and after them."""
    learner = LearnerRank(config, LearnerJob(path, TOTAL_STEPS), rank, ranks)
    port = [learner.listen("127.0.0.1", 60.0) if rank == 0 else None]
    dist.broadcast_object_list(port)
    dist.destroy_process_group()  # the learner forms its own
    learner.setup("127.0.0.1", port[0], 60.0)  # type: ignore[arg-type]
    start = learner.export_weights(0)
    for step in range(2):
        groups = draw_groups(step)
        learner.step([groups[:1] if rank else groups[1:]], step)
    end = learner.export_weights(1)
    learner.close()
    return {
        f"{name} of version {offer.version}": tensor.numpy().copy()
        for offer, blob in (each for each in (start, end) if each is not None)
        for name, tensor in open_tensors(offer.manifest, blob).items()
    }


@pytest.mark.parametrize("adapter", KINDS, ids=lambda kind: kind.kind)
def test_two_ranks_begin_and_learn_as_one(policy_path: str, on_two_ranks: OnTwoRanks, adapter: LowRank) -> None:
    config = config_with(adapter, optimizer=AdamW(lr=1e-3))
    with running_rank(policy_path, config) as rank:
        start = weights_of(rank)
        drawn = {name: value.full_tensor().detach().clone() for name, value in rank.policy.adapter.parameters().items()}
        trained_rank(rank)
        alone = weights_of(rank)
    assert all(torch.equal(rank.policy.adapter.start_of(name), value) for name, value in drawn.items())
    together, _ = on_two_ranks(learn_on_two, policy_path, config)
    for name, value in alone.items():
        np.testing.assert_array_equal(together[f"{name} of version 0"], start[name].numpy())
        np.testing.assert_allclose(together[f"{name} of version 1"], value.numpy(), rtol=0, atol=1e-6)

"""One learner rank in this process, on gloo."""

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from actors.rollout.sample import Sample
from actors.weights.block import open_tensors, verify
from learner.actor import LearnerActor
from learner.config import KlConfig, LearnerConfig, MemoryConfig
from learner.errors import DivergedError
from learner.job import LearnerJob
from learner.optim import AdamW, Cosine
from learner.rank import LearnerRank
from moments_service.durable import verify_directory
from tests.made_policies import write_tiny
from tests.made_samples import ScoredSamples, made_group, trained_tokens
from tests.shelf import Shelf

pytestmark = pytest.mark.unit
VOCABULARY = 64
TOTAL_STEPS = 10


def make_policy(directory: Path, tied: bool = True) -> str:
    path = write_tiny(directory, num_hidden_layers=3, vocab_size=VOCABULARY, tie_word_embeddings=tied)
    (directory / "tokenizer_config.json").write_text(json.dumps({"a": "file beside the weights"}))
    return path


@pytest.fixture
def policy_path(tmp_path: Path) -> str:
    return make_policy(tmp_path / "policy")


@contextmanager
def running_rank(path: str, config: LearnerConfig, **job: object) -> Iterator[LearnerRank]:
    rank = LearnerRank(config, LearnerJob(path, TOTAL_STEPS, **job), 0, world_size=1)  # type: ignore[arg-type]
    try:
        rank.setup("127.0.0.1", 0, timeout_s=60.0)
        yield rank
    finally:
        rank.close()


def draw_groups(step: int, count: int = 4, completions: int = 3) -> list[ScoredSamples]:
    rng = np.random.default_rng(step)
    return [
        made_group(f"{step}-{i}", int(rng.integers(2, 9)), rng.integers(1, 7, completions).tolist(), seed=step)
        for i in range(count)
    ]


def config_with(lr: float = 1e-3, **changes: object) -> LearnerConfig:
    return LearnerConfig(**({"optimizer": AdamW(lr=lr)} | changes))  # type: ignore[arg-type]


def split(groups: list[ScoredSamples], updates: int) -> list[list[ScoredSamples]]:
    return [groups[i::updates] for i in range(updates)]


def weights_of(rank: LearnerRank) -> dict[str, torch.Tensor]:
    packed = rank.export_weights(1)
    assert packed is not None
    offer, blob = packed
    assert (offer.version, offer.kind, offer.base_version) == (1, "full", None)
    verify(replace(offer, address=blob))
    return open_tensors(offer.manifest, blob)


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.endswith("_s")}


def test_weights_leave_by_the_transport_of_the_job(policy_path: str) -> None:
    shelf = Shelf()
    actor = LearnerActor(LearnerConfig(), LearnerJob(policy_path, TOTAL_STEPS, weights=shelf), 0)
    try:
        actor.rank.setup("127.0.0.1", 0, timeout_s=60.0)
        placed, offer, seconds = actor.export_weights(3)
    finally:
        actor.rank.close()
    assert placed == "place 3" and offer is not None and offer.version == 3 and seconds > 0
    verify(replace(offer, address=shelf.places[placed]))


def sequence_logprob(weights: dict[str, torch.Tensor], path: str, sample: Sample) -> float:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    ids = torch.from_numpy(sample.token_ids.astype(np.int64))[None]
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0].log_softmax(-1)
    start = int(sample.loss_mask.argmax())
    return float(logs[start - 1 : -1].gather(1, ids[0, start:, None]).sum())


def test_training_raises_good_completions_and_lowers_bad_ones(policy_path: str) -> None:
    (group,) = draw_groups(0, count=1, completions=2)
    samples = group[0]
    group = (samples, np.array([1.0, -1.0]))
    with running_rank(policy_path, config_with(lr=3e-3)) as rank:
        before = weights_of(rank)
        metrics = [rank.step([[group]], step) for step in range(5)]
        after = weights_of(rank)
    good, bad = (
        sequence_logprob(after, policy_path, sample) - sequence_logprob(before, policy_path, sample)
        for sample in samples
    )
    assert good > 0.1 and bad < -0.1
    assert all(m["ratio_max"] == 1.0 and m["clip_low"] == m["clip_high"] == 0.0 for m in metrics)
    assert metrics[0]["tokens"] == sum(sample.trained_tokens for sample in samples)


def test_gradient_is_that_of_a_plain_model_and_loss(policy_path: str) -> None:
    """The oracle runs Hugging Face's forward on one completion at a time and averages by hand."""
    groups = draw_groups(3)
    model = AutoModelForCausalLM.from_pretrained(policy_path, dtype=torch.float32)
    total = torch.zeros(())
    for samples, advantages in groups:
        for sample, advantage in zip(samples, advantages, strict=True):
            ids, start = torch.from_numpy(sample.token_ids.astype(np.int64)), int(sample.loss_mask.argmax())
            logs = model(input_ids=ids[None]).logits[0, start - 1 : -1].log_softmax(-1)
            mean = logs.gather(1, ids[start:, None]).mean()
            total = total - advantage * mean / (len(samples) * len(groups))
    total.backward()
    expected = torch.sqrt(sum(p.grad.double().square().sum() for p in model.parameters())).item()
    for share_prompt in (True, False):
        with running_rank(policy_path, config_with(share_prompt=share_prompt, microbatch_tokens=20)) as rank:
            metrics = rank.step([groups], 0)
        assert metrics["microbatches"] > 1
        assert metrics["grad_norm"] == pytest.approx(expected, rel=1e-5)


def test_repeated_updates_on_a_batch_lower_its_loss_and_clip(policy_path: str) -> None:
    groups = draw_groups(1)
    with running_rank(policy_path, config_with(lr=2e-2, updates_per_batch=4)) as rank:
        metrics = rank.step([groups] * 4, 0)
    on_policy_loss = -np.mean([np.mean(advantages) for _, advantages in groups])
    assert metrics["updates"] == 4.0
    assert metrics["loss"] < on_policy_loss - 0.01
    assert metrics["ratio_max"] > 1.2 and metrics["clip_high"] > 0 and metrics["approx_kl"] > 0


def test_an_update_without_anything_to_train_on_is_skipped(policy_path: str) -> None:
    groups = draw_groups(1)
    silent = [(samples, np.full(len(samples), np.nan)) for samples, _ in groups]
    with running_rank(policy_path, config_with(updates_per_batch=2)) as rank:
        before = weights_of(rank)
        metrics = rank.step([silent, silent], 0)
        after = weights_of(rank)
    assert metrics["updates"] == metrics["tokens"] == metrics["loss"] == 0.0
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_trainable_freezes_the_rest_bit_for_bit(policy_path: str) -> None:
    with running_rank(policy_path, config_with(trainable=r"layers\.2\.")) as rank:
        before = weights_of(rank)
        rank.step([draw_groups(0)], 0)
        after = weights_of(rank)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".layers.2." in name}


def test_trainable_that_matches_nothing_names_the_pattern(policy_path: str) -> None:
    with (
        pytest.raises(ValueError, match=r"learner\.trainable: 'decoder\.7' matches no parameter"),
        running_rank(policy_path, config_with(trainable=r"decoder.7")),
    ):
        pass


def test_a_tied_head_trains_the_embedding_and_is_exported_once(policy_path: str) -> None:
    with running_rank(policy_path, config_with(trainable="lm_head")) as rank:
        before = weights_of(rank)
        rank.step([draw_groups(0)], 0)
        after = weights_of(rank)
    assert "lm_head.weight" not in after
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["model.embed_tokens.weight"]


@pytest.mark.parametrize("tied", [True, False])
def test_export_has_the_names_and_values_of_the_model_it_loaded(tmp_path: Path, tied: bool) -> None:
    path = make_policy(tmp_path / "policy", tied)
    expected = load_file(tmp_path / "policy" / "model.safetensors")
    for dtype in ("float32", "bfloat16"):
        with running_rank(
            path, config_with(memory=MemoryConfig(activation_checkpointing="layer")), export_dtype=dtype
        ) as rank:
            exported = weights_of(rank)
        assert set(exported) == set(expected)
        assert all(torch.equal(exported[name], expected[name].to(getattr(torch, dtype))) for name in expected)


def test_activation_checkpointing_changes_nothing(policy_path: str) -> None:
    results = []
    for kind in ("none", "layer", "selective"):
        memory = MemoryConfig(activation_checkpointing=kind)  # type: ignore[arg-type]
        with running_rank(policy_path, config_with(memory=memory)) as rank:
            metrics = rank.step([draw_groups(0)], 0)
            results.append((metrics["loss"], metrics["grad_norm"], weights_of(rank)))
    for other in results[1:]:
        assert results[0][:2] == other[:2]
        assert all(torch.equal(results[0][2][name], other[2][name]) for name in results[0][2])


def test_bfloat16_keeps_float32_masters(policy_path: str) -> None:
    with running_rank(policy_path, config_with(lr=1e-6, dtype="bfloat16")) as rank:
        before = weights_of(rank)
        metrics = rank.step([draw_groups(0)], 0)
        after = weights_of(rank)
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (after[name] - before[name]).abs().max()
    assert 0 < moved < 2e-6 and np.isfinite(metrics["loss"])


def test_reference_model_holds_the_policy_back(policy_path: str) -> None:
    moved = []
    for kl_coef in (0.0, 5.0):
        config = config_with(lr=5e-3, kl=KlConfig(coef=kl_coef))
        with running_rank(policy_path, config) as rank:
            metrics = [rank.step([draw_groups(0)], step) for step in range(4)]
            moved.append(metrics[-1])
    assert moved[0]["reference_kl"] == 0.0 < moved[1]["reference_kl"]
    free = config_with(lr=5e-3, kl=KlConfig(coef=1e-9))
    with running_rank(policy_path, free) as rank:
        unbound = [rank.step([draw_groups(0)], step) for step in range(4)][-1]
    assert moved[1]["reference_kl"] < 0.5 * unbound["reference_kl"]


def continue_from(path: str, config: LearnerConfig, checkpoint: str, steps: range) -> dict[str, np.ndarray]:
    """Runs in a fresh process: load, take the steps, return the weights."""
    torch.set_num_threads(1)
    with running_rank(path, config) as rank:
        assert rank.load(checkpoint) == steps.start
        for step in steps:
            rank.step(split(draw_groups(step), config.updates_per_batch), step)
        return {name: tensor.numpy() for name, tensor in weights_of(rank).items()}


@pytest.mark.parametrize("updates", [1, 2])
def test_save_and_load_in_a_new_process_is_bit_exact(policy_path: str, tmp_path: Path, updates: int) -> None:
    config = LearnerConfig(
        optimizer=AdamW(lr=1e-3, weight_decay=0.01),
        schedule=Cosine(warmup_steps=3),
        updates_per_batch=updates,
        trainable="layers.[12]|embed",
        memory=MemoryConfig(activation_checkpointing="layer" if updates == 2 else "none"),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with running_rank(policy_path, config) as rank:
        for step in range(6):
            rank.step(split(draw_groups(step), updates), step)
            if step == 2:
                rank.save(tmp_path / "checkpoint")
        expected = weights_of(rank)
    torch.set_num_threads(threads)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        call = fresh.submit(continue_from, policy_path, config, str(tmp_path / "checkpoint"), range(3, 6))
        found = call.result(timeout=120)
    assert set(found) == set(expected)
    assert all(np.array_equal(found[name], expected[name].numpy()) for name in expected)


def test_a_checkpoint_before_the_first_step_is_a_checkpoint(policy_path: str, tmp_path: Path) -> None:
    with running_rank(policy_path, config_with()) as rank:
        rank.save(tmp_path / "checkpoint")
        straight = rank.step([draw_groups(0)], 0)
    with running_rank(policy_path, config_with()) as rank:
        assert rank.load(tmp_path / "checkpoint") == 0
        resumed = rank.step([draw_groups(0)], 0)
    assert untimed(straight) == untimed(resumed)


def test_export_hf_loads_and_keeps_the_files_beside_the_weights(policy_path: str, tmp_path: Path) -> None:
    with running_rank(policy_path, config_with()) as rank:
        rank.step([draw_groups(0)], 0)
        rank.export_hf(tmp_path / "out")
        expected = weights_of(rank)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    assert (tmp_path / "out" / "tokenizer_config.json").exists()


def poisoned(groups: list[ScoredSamples]) -> list[ScoredSamples]:
    """An advantage that is a number, and whose gradient overflows."""
    return [(samples, np.full(len(samples), 1e38)) for samples, _ in groups]


@pytest.mark.parametrize("updates", [1, 2])
def test_a_gradient_that_is_not_finite_is_skipped_counted_and_kept(
    policy_path: str, tmp_path: Path, updates: int
) -> None:
    """It ended the run."""
    config = config_with(updates_per_batch=updates)
    good, bad = draw_groups(0), poisoned(draw_groups(1))
    with running_rank(policy_path, config) as rank:
        rank.step(split(good, updates), 0)
        expected = rank.step(split(draw_groups(2), updates), 2)
        weights = weights_of(rank)
    with running_rank(policy_path, config, inspect_dir=str(tmp_path / "skipped")) as rank:
        rank.step(split(good, updates), 0)
        metrics = rank.step(split(bad, updates), 1)
        assert metrics["skipped"] == updates and metrics["updates"] == metrics["tokens"] == metrics["loss"] == 0.0
        assert all(np.isfinite(value) for value in metrics.values()), "a file of metrics is JSON, which has no NaN"
        found = rank.step(split(draw_groups(2), updates), 2)
        assert found["skipped"] == 0.0
        assert untimed(found) == untimed(expected)
        assert all(torch.equal(weights[name], value) for name, value in weights_of(rank).items())
    kept = tmp_path / "skipped" / "rank-0" / "step-000001-update-0-rank-0"
    verify_directory(kept)
    assert json.loads((kept / "about.json").read_text())["gradient_norm"] in ("inf", "nan")
    targets = load_file(kept / "batch.safetensors")["0.targets"].tolist()
    assert sorted(targets) == sorted(
        t for samples, _ in split(bad, updates)[0] for s in samples for t in trained_tokens(s)
    )


def test_too_many_bad_gradients_in_a_row_end_the_run(policy_path: str) -> None:
    bad = poisoned(draw_groups(1))
    with running_rank(policy_path, config_with(max_skipped=2)) as rank:
        rank.step([bad], 0)
        assert rank.step([draw_groups(0)], 1)["skipped"] == 0.0, "which begins the count anew"
        rank.step([bad], 2)
        with pytest.raises(DivergedError, match=r"at step 3, update 0.*learner\.max_skipped"):
            rank.step([bad], 3)


def test_the_policy_s_move_is_measured_where_it_is_asked_for(policy_path: str, tmp_path: Path) -> None:
    config = config_with(lr=1e-2)
    with running_rank(policy_path, config) as rank:
        assert not any(name.startswith("move") for name in rank.step([draw_groups(0)], 0))
    with running_rank(policy_path, config, measure_move=True) as rank:
        moved = rank.step([draw_groups(0)], 0)
        rank.save(tmp_path / "checkpoint")
    assert moved["move_kl"] > 0 and moved["move_log_ratio"] > 0

"""The learner group on a real Ray: several FSDP ranks on gloo, publishing, checkpoints, failures."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from actors.placement import NoRoomError
from actors.rollout.sample import Sample
from actors.weights.object_store import open_tensors, verify
from learner.config import LearnerConfig
from learner.errors import LearnerError, PayloadLostError, RankDiedError, RankFailedError
from learner.group import LearnerGroup
from learner.job import LearnerJob
from learner.optim import AdamW
from moments_service.messages.batch import Batch
from moments_service.messages.groups import BlendedGroup, ScoredGroup
from tests.made_samples import made_group

pytestmark = pytest.mark.integration
VOCABULARY = 64


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False)
    # Workers cannot import a test module, so its classes travel whole.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    return str(directory)


class Owner:
    """Stands in for a rollout actor: owns payloads, and takes them with it when it dies."""

    def put(self, samples: tuple[Sample, ...]) -> list[ray.ObjectRef]:
        return [ray.put(samples)]


def blended(samples: tuple[Sample, ...], advantages: tuple[float | None, ...], handle: object) -> BlendedGroup:
    size = len(advantages)
    header = ScoredGroup(
        group_id=samples[0].group_id,
        prompt_id=samples[0].group_id,
        source="test",
        sequence=0,
        rewards=tuple(None if a is None else 1.0 for a in advantages),
        errors=tuple("timeout" if a is None else None for a in advantages),
        lengths=tuple(sample.trained_tokens for sample in samples),
        truncated=(False,) * size,
        policy_versions=(0, 0),
    )
    return BlendedGroup(header, handle, 0, advantages, 0.0, 1.0, 0.0)


def draw_batch(step: int, count: int = 5, by_ref: bool = True) -> Batch:
    rng = np.random.default_rng(step)
    groups = []
    for i in range(count):
        lengths = rng.integers(1, 7, 3)
        samples, _ = made_group(f"{step}-{i}", int(rng.integers(2, 9)), lengths.tolist(), seed=step)
        a, b, c = rng.normal(size=3).tolist()
        advantages = (a, None if i == 0 else b, c)
        groups.append(blended(samples, advantages, ray.put(samples) if by_ref else samples))
    return Batch.of(step=step, groups=tuple(groups))


def config_for(world_size: int, **changes: object) -> LearnerConfig:
    fields = {
        "world_size": world_size,
        "cpus": 0.5,
        "microbatch_tokens": 48,
        "step_timeout_s": 60.0,
        "optimizer": AdamW(lr=1e-3),
    }
    return LearnerConfig(**(fields | changes))  # type: ignore[arg-type]


@asynccontextmanager
async def running_group(path: str, config: LearnerConfig) -> AsyncIterator[LearnerGroup]:
    group = await LearnerGroup.start(config, LearnerJob(path, total_steps=6), start_timeout_s=120.0)
    try:
        yield group
    finally:
        await group.close()


@pytest.fixture(scope="module")
def pair(policy_path: str) -> Iterator[LearnerGroup]:
    """Two ranks that several tests use one after the other."""
    group = asyncio.run(LearnerGroup.start(config_for(2), LearnerJob(policy_path, total_steps=6), 120.0))
    yield group
    asyncio.run(group.close())


async def published(group: LearnerGroup, version: int = 1) -> dict[str, np.ndarray]:
    offer = await group.offer(version)
    assert (offer.version, offer.kind, offer.base_version) == (version, "full", None)
    blob = await offer.address
    verify(replace(offer, address=blob))
    return {name: tensor.numpy().copy() for name, tensor in open_tensors(offer.manifest, blob).items()}


@pytest.mark.parametrize("updates", [1, 2])
async def test_two_ranks_learn_what_one_learns(policy_path: str, updates: int) -> None:
    results = []
    for world_size in (1, 2):
        async with running_group(policy_path, config_for(world_size, updates_per_batch=updates)) as group:
            metrics = [await group.step(draw_batch(step)) for step in range(3)]
            results.append((metrics, await published(group)))
    (one, one_weights), (two, two_weights) = results
    assert set(one_weights) == set(two_weights)
    for name in one_weights:
        np.testing.assert_allclose(one_weights[name], two_weights[name], atol=1e-6, err_msg=name)
    for alone, together in zip(one, two, strict=True):
        assert set(alone) == set(together)
        for name in set(alone) - {"step_s", "open_s", "microbatches"}:
            assert together[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-6), name


async def test_fewer_groups_than_ranks_and_payloads_without_refs(pair: LearnerGroup) -> None:
    metrics = await pair.step(draw_batch(0, count=1, by_ref=False))
    assert metrics["updates"] == 1.0 and metrics["grad_norm"] > 0
    empty = await pair.step(Batch.of(step=1, groups=()))
    assert empty["updates"] == empty["tokens"] == 0.0


async def test_save_with_two_ranks_resumes_with_one(policy_path: str, tmp_path: Path) -> None:
    checkpoint = str(tmp_path / "checkpoint")
    async with running_group(policy_path, config_for(2)) as group:
        for step in range(4):
            await group.step(draw_batch(step))
            if step == 1:
                await group.save(checkpoint)
        straight = await published(group)
    files = sorted((tmp_path / "checkpoint").iterdir())
    assert [path.suffix for path in files] == [".safetensors"] * 2, "nothing that has to be unpickled"
    async with running_group(policy_path, config_for(1)) as group:
        half = tmp_path / "half"
        half.mkdir()
        shutil.copy(files[0], half)
        with pytest.raises(LearnerError):
            await group.load(str(half))
    async with running_group(policy_path, config_for(1)) as group:
        assert await group.load(checkpoint) == 2
        for step in (2, 3):
            await group.step(draw_batch(step))
        resumed = await published(group)
        await group.export_hf(str(tmp_path / "out"))
    for name in straight:
        np.testing.assert_allclose(straight[name], resumed[name], atol=1e-6, err_msg=name)
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, value in resumed.items():
        np.testing.assert_array_equal(state[name].numpy(), value, err_msg=name)


async def test_an_offer_says_what_it_holds_and_a_new_one_leaves_it_alone(pair: LearnerGroup) -> None:
    first = await pair.offer(5)
    block = (await first.address).copy()
    await pair.step(draw_batch(0))
    second = await pair.offer(6)
    assert (first.version, second.version) == (5, 6) and len({entry.name for entry in first.manifest}) == len(
        first.manifest
    )
    assert [(e.name, e.dtype, e.shape) for e in first.manifest] == [(e.name, e.dtype, e.shape) for e in second.manifest]
    assert any(a.checksum != b.checksum for a, b in zip(first.manifest, second.manifest, strict=True))
    np.testing.assert_array_equal(await first.address, block)


async def test_lost_payloads_are_reported_before_anything_is_trained(pair: LearnerGroup) -> None:
    owner = ray.remote(Owner).options(num_cpus=0).remote()
    batch = draw_batch(0, by_ref=False)
    (ref,) = await owner.put.remote(batch.groups[2].payload)
    lost = blended(batch.groups[2].payload, batch.groups[2].advantages, ref)
    ray.kill(owner)
    before = await published(pair)
    with pytest.raises(PayloadLostError) as error:
        await pair.step(Batch.of(step=0, groups=(*batch.groups[:2], lost)))
    assert error.value.group_ids == ("0-2",)
    after = await published(pair)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert (await pair.step(Batch.of(step=0, groups=batch.groups[:2])))["updates"] == 1.0


async def test_a_dead_rank_is_named(policy_path: str) -> None:
    async with running_group(policy_path, config_for(2)) as group:
        await group.step(draw_batch(0))
        ray.kill(group.ranks[1])
        with pytest.raises(RankDiedError, match="learner rank 1 died while") as error:
            await group.step(draw_batch(1))
        assert error.value.ranks == (1,)


async def test_a_policy_that_does_not_load_fails_the_start_and_gives_its_cpus_back(tmp_path: Path) -> None:
    with pytest.raises(RankFailedError, match=r"learner rank \d failed while meeting and loading the policy"):
        await LearnerGroup.start(config_for(2), LearnerJob(str(tmp_path / "nothing"), total_steps=1), 120.0)


async def test_no_room_says_what_to_lower(policy_path: str) -> None:
    too_much = config_for(1, cpus=float(2 * (os.cpu_count() or 1) + 64))
    with pytest.raises(NoRoomError, match=r"no room for 1 x learner rank .* in 1 s\. The nodes:\n .* CPU free"):
        await LearnerGroup.start(too_much, LearnerJob(policy_path, total_steps=1), 1.0)

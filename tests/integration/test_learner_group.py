"""The learner group on a real Ray: several FSDP ranks on gloo, publishing, checkpoints, failures."""

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from actors.placement import NoRoomError
from actors.rollout.sample import Sample
from actors.weights import shared_memory
from actors.weights.block import open_tensors
from actors.weights.offer import WeightOffer, WeightsReleasedError
from actors.weights.shared_memory import SharedMemoryConfig
from actors.weights.transport import fetched
from learner.config import LearnerConfig
from learner.errors import LearnerError, PayloadLostError, RankLateError
from learner.group import LearnerGroup
from learner.job import LearnerJob
from learner.optim.adamw import AdamW
from moments_service.messages.batch import Batch
from moments_service.messages.groups import ScoredGroup
from moments_service.messages.table import GroupTable
from tests.made_policies import write_tiny
from tests.made_samples import made_group
from tests.ray_start import WORKERS_LIKE_OTHERS

pytestmark = pytest.mark.integration
VOCABULARY = 64


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in WORKERS_LIKE_OTHERS.items():
            patch.setenv(name, value)
        ray.init(num_cpus=3, include_dashboard=False)
    # Workers cannot import a test module, so its classes travel whole.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("policy"), vocab_size=VOCABULARY)


class Receiver:
    """Stands in for a rollout actor: takes weight updates and owns payloads."""

    def __init__(self) -> None:
        self.weights: dict[str, np.ndarray] = {}
        self.version = -1

    def move(self) -> None:
        """As if it were on another machine from now on."""
        shared_memory.who_sees = lambda: "another machine"

    async def take(self, offer: WeightOffer) -> int:
        offer = await fetched(offer, SharedMemoryConfig().create())
        tensors = open_tensors(offer.manifest, offer.address)
        self.weights = {name: tensor.float().numpy() for name, tensor in tensors.items()}
        self.version = offer.version
        return offer.version

    def received(self) -> tuple[int, dict[str, np.ndarray]]:
        return self.version, self.weights

    def put(self, samples: tuple[Sample, ...]) -> list[ray.ObjectRef]:
        return [ray.put(samples)]


def start_receiver() -> ray.actor.ActorHandle:
    return ray.remote(Receiver).options(num_cpus=0).remote()


def batch_of(
    step: int, groups: Sequence[tuple[tuple[Sample, ...], np.ndarray]], payloads: Sequence[Any] | None = None
) -> Batch:
    """A batch of samples with their advantages, NaN where there was no reward; payloads: instead of the samples."""
    headers = [
        ScoredGroup(
            group_id=samples[0].group_id,
            prompt_id=samples[0].group_id,
            source="test",
            sequence=place,
            rewards=tuple(None if np.isnan(a) else 1.0 for a in advantages),
            errors=tuple("timeout" if np.isnan(a) else None for a in advantages),
            lengths=tuple(sample.trained_tokens for sample in samples),
            truncated=(False,) * len(samples),
            policy_versions=(0, 0),
        )
        for place, (samples, advantages) in enumerate(groups)
    ]
    table, nothing = GroupTable.of(headers), np.zeros(len(groups))
    return Batch(
        step=step,
        table=table,
        payloads=tuple([samples for samples, _ in groups] if payloads is None else payloads),
        clusters=nothing.astype(np.int64),
        advantages=np.array([advantages for _, advantages in groups]).reshape(table.rewards.shape),
        baseline=nothing,
        scale=nothing + 1.0,
        weight=nothing,
    )


def drawn(step: int, count: int = 5) -> list[tuple[tuple[Sample, ...], np.ndarray]]:
    rng = np.random.default_rng(step)
    groups = []
    for i in range(count):
        lengths = rng.integers(1, 7, 3).tolist()
        advantages = rng.normal(size=3)
        if i == 0:
            advantages[1] = np.nan
        groups.append(made_group(f"{step}-{i}", int(rng.integers(2, 9)), lengths, advantages, vocabulary=VOCABULARY))
    return groups


def draw_batch(step: int, count: int = 5, by_ref: bool = True) -> Batch:
    groups = drawn(step, count)
    return batch_of(step, groups, [ray.put(samples) for samples, _ in groups] if by_ref else None)


def config_for(world_size: int, **changes: object) -> LearnerConfig:
    fields = {
        "world_size": world_size,
        "cpus": 0.5,
        "microbatch_tokens": 48,
        "step_timeout_s": 60.0,
        "optimizer": AdamW(lr=1e-3),
    }
    return LearnerConfig(**(fields | changes))  # type: ignore[arg-type]


async def started(path: str, config: LearnerConfig, checkpoint: Path) -> tuple[LearnerGroup, Path]:
    """A group before its first step, and where it can be loaded from again."""
    group = await LearnerGroup.start(config, LearnerJob(path, 6), 120.0)
    await group.save(str(checkpoint))
    return group, checkpoint


@pytest.fixture(scope="module", params=[2, pytest.param(1, marks=pytest.mark.long)], ids="{} updates a batch".format)
def updates(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def groups(
    policy_path: str, updates: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[int, tuple[LearnerGroup, Path]]]:
    """By number of ranks, a group that the tests use one after the other, and where its first state is kept."""
    starts = tmp_path_factory.mktemp("start")

    async def both() -> list[tuple[LearnerGroup, Path]]:
        configs = (config_for(ranks, updates_per_batch=updates) for ranks in (1, 2))
        return await asyncio.gather(*(started(policy_path, c, starts / f"{c.world_size}") for c in configs))

    made = dict(enumerate(asyncio.run(both()), start=1))
    yield made
    for group, _ in made.values():
        asyncio.run(group.close())


async def as_at_the_start(groups: dict[int, tuple[LearnerGroup, Path]], ranks: int) -> LearnerGroup:
    group, checkpoint = groups[ranks]
    assert await group.load(str(checkpoint)) == 0
    return group


@pytest.fixture
async def alone(groups: dict[int, tuple[LearnerGroup, Path]]) -> LearnerGroup:
    return await as_at_the_start(groups, 1)


@pytest.fixture
async def pair(groups: dict[int, tuple[LearnerGroup, Path]]) -> LearnerGroup:
    return await as_at_the_start(groups, 2)


async def published(group: LearnerGroup, version: int = 1, away: bool = False) -> dict[str, np.ndarray]:
    receiver = start_receiver()
    if away:
        await receiver.move.remote()
    await receiver.take.remote(await group.offer(version))
    found, weights = await receiver.received.remote()
    ray.kill(receiver)
    assert found == version
    return weights


def assert_learned_the_same(path: str, one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Weights moved alike since the policy in `path`, to a thousandth of how far they moved.

    By tensor: Adam divides a gradient by its own size, so that where it is nearly 0 the order of a sum decides whether an
    element goes one learning rate up or down; which elements these are depends on the processor.
    """
    start = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()
    assert set(one) == set(other)
    for name in one:
        moved = np.linalg.norm(one[name] - start[name].numpy())
        assert np.linalg.norm(one[name] - other[name]) <= 1e-3 * moved, name


async def test_engines_on_other_nodes_read_a_copy(alone: LearnerGroup) -> None:
    near = await published(alone, version=2)
    with pytest.raises(WeightsReleasedError, match="weights: object_store"):
        await published(alone, version=3, away=True)
    alone.offers_elsewhere = True
    try:
        away = await published(alone, version=4, away=True)
    finally:
        alone.offers_elsewhere = False
    assert near.keys() == away.keys() and all(np.array_equal(away[name], near[name]) for name in near)


async def test_two_ranks_learn_what_one_learns(policy_path: str, alone: LearnerGroup, pair: LearnerGroup) -> None:
    results = []
    for group in (alone, pair):
        metrics = [await group.step(draw_batch(step)) for step in range(3)]
        results.append((metrics, await published(group)))
    (one, one_weights), (two, two_weights) = results
    assert_learned_the_same(policy_path, one_weights, two_weights)
    for by_one, together in zip(one, two, strict=True):
        assert set(by_one) == set(together)
        for name in (name for name in by_one if not name.endswith("_s") and name != "microbatches"):
            assert together[name] == pytest.approx(by_one[name], rel=1e-4, abs=1e-6), name


async def test_fewer_groups_than_ranks_and_payloads_without_refs(pair: LearnerGroup) -> None:
    metrics = await pair.step(draw_batch(0, count=1, by_ref=False))
    assert metrics["updates"] >= 1.0 and metrics["grad_norm"] > 0
    empty = await pair.step(batch_of(1, []))
    assert empty["updates"] == empty["tokens"] == 0.0


async def test_save_with_two_ranks_resumes_with_one(
    policy_path: str, alone: LearnerGroup, pair: LearnerGroup, tmp_path: Path
) -> None:
    checkpoint = str(tmp_path / "checkpoint")
    for step in range(4):
        await pair.step(draw_batch(step))
        if step == 1:
            await pair.save(checkpoint)
    straight = await published(pair)
    files = sorted((tmp_path / "checkpoint").iterdir())
    assert [path.suffix for path in files] == [".safetensors"] * 2, "nothing that has to be unpickled"
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(files[0], half)
    with pytest.raises(LearnerError):
        await alone.load(str(half))
    assert await alone.load(checkpoint) == 2
    for step in (2, 3):
        await alone.step(draw_batch(step))
    resumed = await published(alone)
    await alone.export_hf(str(tmp_path / "out"))
    assert_learned_the_same(policy_path, straight, resumed)
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, value in resumed.items():
        np.testing.assert_array_equal(state[name].numpy(), value, err_msg=name)


async def test_lost_payloads_are_reported_before_anything_is_trained(pair: LearnerGroup) -> None:
    owner = start_receiver()
    groups = drawn(0, count=3)
    (lost,) = await owner.put.remote(groups[2][0])
    ray.kill(owner)
    before = await published(pair)
    with pytest.raises(PayloadLostError) as error:
        await pair.step(batch_of(0, groups, [groups[0][0], groups[1][0], lost]))
    assert error.value.group_ids == ("0-2",)
    after = await published(pair)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert (await pair.step(batch_of(0, groups[:2])))["updates"] >= 1.0


async def test_a_dead_rank_is_named(pair: LearnerGroup) -> None:
    """The last test of the pair, which does not survive it."""
    await pair.step(draw_batch(0))
    ray.kill(pair.ranks[1])
    with pytest.raises(LearnerError, match="learner rank 1 died while"):
        await pair.step(draw_batch(1))


def hang_in_a_layer(actor: Any) -> None:
    """From now on this rank hangs in the middle of a forward pass, between two collectives."""
    actor.rank.policy.layers[1].register_forward_pre_hook(lambda *_: time.sleep(300))


def stop_whole(_: Any) -> None:
    """Stop this rank's process, all of its threads."""
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (hang_in_a_layer, r"it is in update 1 of 1 of step 1, microbatch 1 of \d+, \S+\.py:\d+"),
        (stop_whole, "it does not answer"),
    ],
)
async def test_a_rank_that_hangs_is_named_and_its_peer_is_not(
    policy_path: str, fault: Callable[[Any], None], where: str
) -> None:
    group = await LearnerGroup.start(config_for(2, step_timeout_s=10.0), LearnerJob(policy_path, 6), 120.0)
    try:
        await group.step(draw_batch(0))
        injected = group.ranks[1].__ray_call__.remote(fault)
        if fault is hang_in_a_layer:
            await injected
        collective = group.step(draw_batch(1)) if fault is hang_in_a_layer else group.offer(1)
        said = (
            rf"learner rank 1 did not finish .* in 10 s \(learner\.step_timeout_s\), and rank 0 waits for it; {where}$"
        )
        with pytest.raises(RankLateError, match=said) as error:
            await collective
        assert error.value.ranks == (1,)
    finally:
        await group.close()


async def test_a_policy_that_does_not_load_fails_the_start_and_gives_its_cpus_back(tmp_path: Path) -> None:
    with pytest.raises(LearnerError, match=r"learner rank \d failed while meeting and loading the policy"):
        await LearnerGroup.start(config_for(2), LearnerJob(str(tmp_path / "nothing"), 1), 120.0)


async def test_no_room_says_what_to_lower(policy_path: str) -> None:
    too_much = config_for(1, cpus=float(2 * (os.cpu_count() or 1) + 64))
    with pytest.raises(NoRoomError, match=r"no room for 1 x learner rank .* in 1 s\. The nodes:\n .* CPU free"):
        await LearnerGroup.start(too_much, LearnerJob(policy_path, 1), 1.0)

"""The contract of every rollout engine. Each engine starts once; its last test ends it by a fault."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker

import numpy as np
import psutil
import pytest
import pytest_asyncio

from actors.config import RolloutConfig
from actors.engines.create import create_engine
from actors.engines.policy_files import read_policy_files, verify_offer
from actors.engines.protocol import Completion, Engine, EngineDeadError, GenerationRequest, Running
from actors.weights.memory_file import MemoryFile
from actors.weights.offer import WeightError
from tests.contract.conftest import packed

pytestmark = [pytest.mark.contract, pytest.mark.asyncio(loop_scope="module")]

TOLERANCE = 1e-4
EOS = 2
SMALL = {"kind": "vllm", "kv_cache_gib": 0.125}


@dataclass(frozen=True)
class Case:
    engine: str
    family: str
    tied: bool
    fault: str
    """How the last test ends the engine."""

    def __str__(self) -> str:
        return f"{self.engine}-{self.family}-{'tied' if self.tied else 'untied'}"


CASES = (
    Case("transformers", "qwen3", tied=False, fault="incomplete"),
    Case("transformers", "llama", tied=True, fault="damaged"),
    Case("vllm", "qwen3", tied=True, fault="damaged"),
    Case("vllm", "llama", tied=False, fault="killed"),
)


@dataclass
class Served:
    """A started engine with the policy that it serves."""

    case: Case
    engine: Engine
    policy: object

    async def update(self, running: Running = "keep") -> int:
        version = self.engine.policy_version + 1
        await self.engine.take_weights(self.policy.offer(version), running)
        return version

    async def generate_checked(self, request: GenerationRequest) -> tuple[Completion, ...]:
        completions = await self.engine.generate(request)
        self.check(request, completions)
        return completions

    def check(self, request: GenerationRequest, completions: tuple[Completion, ...]) -> None:
        """Shapes, types, and every log-prob against the oracle at the token's own version."""
        assert len(completions) == request.n
        assert len({id(each) for each in completions}) == request.n
        for each in completions:
            assert each.token_ids.dtype == each.versions.dtype == np.int32
            assert each.logprobs.dtype == np.float32
            assert each.token_ids.shape == each.logprobs.shape == each.versions.shape
            assert (np.diff(each.versions) >= 0).all()
            if len(each.token_ids):
                np.testing.assert_allclose(each.logprobs, self.policy.logprobs(request, each), atol=TOLERANCE, rtol=0)


def children() -> set[int]:
    """Child processes, without the interpreter's own that cleans up after the others."""
    own = resource_tracker._resource_tracker._pid
    return {child.pid for child in psutil.Process().children(recursive=True)} - {own}


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=CASES, ids=str)
async def served(request: pytest.FixtureRequest, tiny_policy) -> AsyncIterator[Served]:
    case = request.param
    before = children()
    policy = tiny_policy(case.family, case.tied)
    config = RolloutConfig(engine=SMALL if case.engine == "vllm" else case.engine, max_model_len=1024)
    engine = create_engine(config, str(policy.path), seed=7, index=0)
    try:
        await engine.start()
        yield Served(case, engine, policy)
    finally:
        await engine.close()
    await engine.close()
    assert children() <= before


async def long_request_under_way(served: Served, make_request) -> tuple[GenerationRequest, asyncio.Task]:
    """A request that goes on for a while and has sampled at least one token."""
    request = make_request(n=8, max_tokens=900 if served.case.engine == "vllm" else 200)
    if served.case.engine == "vllm":
        task = asyncio.create_task(served.engine.generate(request))
        await asyncio.sleep(0)
        # Decoding is continuous: what was admitted before has a token once this one has two.
        await served.engine.generate(make_request(n=1, max_tokens=2, temperature=0))
        return request, task
    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    hook = served.engine._model.register_forward_hook(lambda *_: loop.call_soon_threadsafe(begun.set) and None)
    task = asyncio.create_task(served.engine.generate(request))
    await asyncio.wait_for(begun.wait(), timeout=60)
    hook.remove()
    return request, task


async def test_logprobs_are_those_of_the_sampling_distribution(served, make_request):
    for settings in ({}, {"temperature": 0.7}, {"top_k": 20}, {"top_p": 0.8}, {"temperature": 1.3, "top_k": 50}):
        await served.generate_checked(make_request(n=4, max_tokens=24, **settings))


async def test_samples_differ_and_fill_max_tokens(served, make_request):
    completions = await served.generate_checked(make_request(n=16, max_tokens=12))
    assert len({each.token_ids.tobytes() for each in completions}) > 1
    for each in completions:
        ended = each.token_ids[-1] == EOS
        assert each.finish_reason == ("stop" if ended else "length")
        assert len(each.token_ids) == 12 or ended


async def test_greedy_is_the_argmax_every_time(served, make_request):
    request = make_request(n=2, max_tokens=16, temperature=0)
    first = await served.generate_checked(request)
    again = await served.engine.generate(replace(request, request_id="again"))
    sampled = await served.generate_checked(replace(request, request_id="sampled", temperature=1.0, top_k=1))
    for each in (*first, *again, *sampled):
        np.testing.assert_array_equal(each.token_ids, first[0].token_ids)
    np.testing.assert_allclose(sampled[0].logprobs, 0, atol=1e-6)


async def test_completions_end_with_a_stop_or_eos_token(served, make_request):
    stops = tuple(range(3, 60))
    for settings, expected in (({"stop_token_ids": stops}, {EOS, *stops}), ({}, {EOS})):
        completions = await served.generate_checked(make_request(n=32, max_tokens=128, **settings))
        stopped = [each for each in completions if each.finish_reason == "stop"]
        assert stopped
        for each in completions:
            ends = np.flatnonzero(np.isin(each.token_ids, list(expected)))
            assert ends.tolist() == ([len(each.token_ids) - 1] if each.finish_reason == "stop" else [])


async def test_no_sample_is_lost_among_many_requests(served, make_request):
    requests = [make_request(length=5 + i % 40, n=1 + i % 8, max_tokens=1 + i % 8) for i in range(64)]
    groups = await asyncio.gather(*(served.engine.generate(request) for request in requests))
    for request, completions in zip(requests, groups, strict=True):
        served.check(request, completions)


async def test_requests_that_cannot_run_are_refused(served, make_request):
    request = make_request(n=1, max_tokens=8)
    results = await asyncio.gather(*(served.engine.generate(request) for _ in range(2)), return_exceptions=True)
    assert [type(each) for each in results] == [tuple, ValueError]
    for length in (0, 1025):
        with pytest.raises(ValueError):
            await served.engine.generate(make_request(length=length))
    filling = await served.generate_checked(make_request(length=1020, n=1, max_tokens=16))
    assert len(filling[0].token_ids) <= 4
    await served.generate_checked(make_request())


async def test_updates_replace_weights_and_cached_prefixes(served, make_request):
    request = make_request(length=330, n=4, max_tokens=8)
    for number in range(4):
        for repeat in range(2):  # The second finds its prefix cached.
            completions = await served.generate_checked(replace(request, request_id=f"{number}-{repeat}"))
            assert {served.engine.policy_version} == set(np.concatenate([each.versions for each in completions]))
        version = await served.update()
        assert served.engine.policy_version == version


async def test_weights_are_written_over_once_they_were_taken(served, make_request):
    version = served.engine.policy_version + 1
    offer = served.policy.offer(version)
    shared = MemoryFile(len(offer.address) + 64)
    block = shared.bytes[:-64]
    block[:] = offer.address
    await served.engine.take_weights(replace(offer, address=block, path=shared.path), "keep")
    assert shared.lock(), "it still reads them"
    shared.bytes[:] = 0xFF  # NaN in every dtype
    for _ in range(2):
        completions = await served.generate_checked(make_request(n=2, temperature=0))
        assert all((each.versions == version).all() for each in completions)


async def test_every_token_knows_its_version(served, make_request):
    old = served.engine.policy_version
    request, running = await long_request_under_way(served, make_request)
    new = await served.update()
    completions = await running
    served.check(request, completions)
    versions = set(np.concatenate([each.versions for each in completions]).tolist())
    assert versions == ({old, new} if served.case.engine == "vllm" else {old})
    (later,) = await served.generate_checked(make_request(n=1))
    assert set(later.versions.tolist()) == {new}


async def test_running_requests_end_first_where_they_are_waited_for(served, make_request):
    old = served.engine.policy_version
    request, running = await long_request_under_way(served, make_request)
    new = await served.update("wait")
    completions = await running
    served.check(request, completions)
    assert {each.finish_reason for each in completions} <= {"stop", "length"}
    assert set(np.concatenate([each.versions for each in completions]).tolist()) == {old}
    (later,) = await served.generate_checked(make_request(n=1))
    assert set(later.versions.tolist()) == {new}


async def test_running_requests_are_ended_where_weights_come_at_once(served, make_request):
    old = served.engine.policy_version
    request, running = await long_request_under_way(served, make_request)
    new = await served.update("abort")
    completions = await asyncio.wait_for(running, timeout=60)
    served.check(request, completions)
    aborted = [each for each in completions if each.finish_reason == "abort"]
    assert aborted and all(len(each.token_ids) < request.max_tokens for each in aborted)
    assert set(np.concatenate([each.versions for each in completions]).tolist()) <= {old}
    (later,) = await served.generate_checked(make_request(n=1))
    assert set(later.versions.tolist()) == {new}


async def test_requests_wait_while_weights_change(served, make_request):
    requests = [make_request(n=4) for _ in range(8)]
    update = asyncio.create_task(served.update())
    await asyncio.sleep(0)
    groups = await asyncio.gather(*(served.engine.generate(request) for request in requests))
    version = await update
    for request, completions in zip(requests, groups, strict=True):
        served.check(request, completions)
        assert {int(each.versions[0]) for each in completions} == {version}


async def test_a_cancelled_request_leaves_the_engine_serving(served, make_request):
    _, running = await long_request_under_way(served, make_request)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await served.generate_checked(make_request())


async def test_a_fault_ends_service(served, make_request):
    """Last of each engine: afterwards nothing may be served, neither running nor later requests."""
    _, running = await long_request_under_way(served, make_request)
    version = served.engine.policy_version
    good = served.policy.offer(version + 1)
    if served.case.fault == "killed":
        engine = [psutil.Process(pid) for pid in children()]
        for process in engine:
            process.suspend()  # so that the weights are on their way when it dies
        update = asyncio.create_task(served.engine.take_weights(good, "keep"))
        while not served.engine._llm.engine_core.utility_results:  # noqa: ASYNC110 - vLLM tells nobody that it was asked
            await asyncio.sleep(0.01)
        for process in engine:
            process.kill()
        for lost in (running, update):
            with pytest.raises(EngineDeadError):
                await asyncio.wait_for(lost, timeout=30)
        with pytest.raises(EngineDeadError):
            await served.engine.generate(make_request())
        with pytest.raises(EngineDeadError):
            await served.engine.take_weights(good, "keep")
        return
    incomplete = packed(list(served.policy.model(version + 1).named_parameters())[:-2], version + 1)
    bad = (
        incomplete
        if served.case.fault == "incomplete"
        else replace(good, manifest=(*good.manifest[:-1], replace(good.manifest[-1], checksum="0" * 64)))
    )
    with pytest.raises(WeightError):
        await served.engine.take_weights(bad, "keep")
    assert served.engine.policy_version == version
    if served.case.engine == "vllm":
        with pytest.raises(WeightError):
            await asyncio.wait_for(running, timeout=60)
    for attempt in (served.engine.generate(make_request()), served.engine.take_weights(good, "keep")):
        with pytest.raises(WeightError):
            await attempt


async def test_transformers_samples_do_not_depend_on_order(tiny_policy, make_request):
    policy = tiny_policy("qwen3", tied=True)
    requests = [make_request(n=3, max_tokens=8, seed=5) for _ in range(6)]
    runs = []
    for order in (requests, requests[::-1]):
        engine = create_engine(RolloutConfig(engine="transformers"), str(policy.path), seed=1, index=len(runs))
        await engine.start()
        groups = await asyncio.gather(*(engine.generate(request) for request in order))
        runs.append({request.request_id: group for request, group in zip(order, groups, strict=True)})
        await engine.close()
    for request in requests:
        for one, other in zip(runs[0][request.request_id], runs[1][request.request_id], strict=True):
            np.testing.assert_array_equal(one.token_ids, other.token_ids)
            np.testing.assert_array_equal(one.logprobs, other.logprobs)


ACTOR_THAT_DIES = """
import asyncio, os, sys
import psutil
from actors.config import RolloutConfig
from actors.engines.create import create_engine

async def main():
    engine = create_engine(RolloutConfig(engine={"kind": "vllm", "kv_cache_gib": 0.125}), sys.argv[1], seed=0, index=0)
    await engine.start()
    print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
    sys.stdin.read()
    os._exit(1)

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_vllm_ends_with_a_killed_actor(tiny_policy, tmp_path):
    script = tmp_path / "actor_that_dies.py"
    script.write_text(ACTOR_THAT_DIES)
    actor = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        str(tiny_policy("qwen3", tied=True).path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert actor.stdout is not None
    pids = await asyncio.wait_for(actor.stdout.readline(), timeout=120)
    engine = [psutil.Process(int(pid)) for pid in pids.split()]
    assert any("EngineCore" in process.name() for process in engine)
    await asyncio.wait_for(actor.communicate(b""), timeout=30)
    _, alive = await asyncio.to_thread(psutil.wait_procs, engine, timeout=30)
    assert not alive


@pytest.mark.parametrize("tied", [True, False])
async def test_updates_must_be_the_whole_policy(tiny_policy, tied):
    policy = tiny_policy("llama", tied=tied)
    files = read_policy_files(str(policy.path))
    tensors = dict(policy.model(1).named_parameters())
    embedding = tensors["model.embed_tokens.weight"]
    verify_offer(packed(tensors.items(), 1), files)
    verify_offer(packed((tensors | {"lm_head.weight": embedding.clone()}).items(), 1), files)
    without_norm = {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}
    for wrong, message in (
        (without_norm, "missing 1 .model.norm.weight"),
        (tensors | {"extra": embedding.clone()}, "unknown 1 .extra"),
        (tensors | {"model.embed_tokens.weight": embedding[:-1]}, "other shape 1 .model.embed_tokens.weight"),
    ):
        with pytest.raises(WeightError, match=message):
            verify_offer(packed(wrong.items(), 1), files)

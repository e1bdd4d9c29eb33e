"""Engines that are sent adapters alone: what they sample with is what peft computes, version by version. The last test ends each by a fault."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from actors.config import RolloutConfig
from actors.engines.adapter_plan import AdapterPlan
from actors.engines.adapters import linear_layers, named_pair, verify_adapter
from actors.engines.create import create_engine
from actors.engines.protocol import Engine
from actors.weights.block import pack
from actors.weights.memory_file import MemoryFile
from actors.weights.offer import WeightError, WeightOffer
from tests.contract.conftest import TinyPolicy, packed

pytestmark = [pytest.mark.contract, pytest.mark.asyncio(loop_scope="module")]
TOLERANCE = 1e-4
RANK = 4


@dataclass
class AdaptedPolicy(TinyPolicy):
    """Version v > 0 is version 0 with an adapter drawn from seed v."""

    def pairs(self, version: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(version)
        return {
            name: (
                torch.randn(RANK, layer.in_features, generator=generator) * 0.1,
                torch.randn(layer.out_features, RANK, generator=generator) * 0.1,
            )
            for name, layer in linear_layers(super().model(0)).items()
        }

    def model(self, version: int) -> PreTrainedModel:
        """Computed by peft."""
        if version not in self.models and version:
            base = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32)
            pairs = self.pairs(version)
            config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(pairs))
            model = get_peft_model(base, config).eval()
            for name, (a, b) in pairs.items():
                layer = model.base_model.model.get_submodule(name)
                layer.lora_A["default"].weight.data.copy_(a)
                layer.lora_B["default"].weight.data.copy_(b)
            self.models[version] = model
        return super().model(version)

    def offer(self, version: int) -> WeightOffer:
        named = [each for name, pair in self.pairs(version).items() for each in named_pair(name, pair)]
        return replace(packed(named, version), kind="adapter", base_version=0)


@dataclass
class Served:
    kind: str
    engine: Engine
    policy: AdaptedPolicy

    async def update(self, running="keep") -> int:
        version = self.engine.policy_version + 1
        await self.engine.take_weights(self.policy.offer(version), running)
        return version

    def check(self, request, completions, version: int) -> None:
        assert len(completions) == request.n
        for each in completions:
            assert each.versions.tolist() == [version] * len(each.token_ids)
            np.testing.assert_allclose(each.logprobs, self.policy.logprobs(request, each), atol=TOLERANCE, rtol=0)


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["transformers", "vllm"])
async def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    path: Path = tmp_path_factory.mktemp("base")
    policy = AdaptedPolicy("qwen3", True, path)
    policy.model(0).save_pretrained(path)
    options = {"kind": "vllm", "kv_cache_gib": 0.125} if request.param == "vllm" else "transformers"
    engine = create_engine(RolloutConfig(engine=options), str(path), 7, 0, AdapterPlan(RANK, ".*"))
    try:
        await engine.start()
        yield Served(request.param, engine, policy)
    finally:
        await engine.close()


async def test_each_version_samples_as_peft_computes(served, make_request):
    request = make_request(length=330, n=2, max_tokens=8)
    for number in range(4):
        version = served.engine.policy_version
        for repeat in range(2):  # the second finds its prefix cached
            again = replace(request, request_id=f"{number}-{repeat}")
            served.check(again, await served.engine.generate(again), version)
        assert await served.update() == served.engine.policy_version == version + 1


async def test_layers_that_vllm_cannot_adapt_are_named(served):
    if served.kind == "vllm":
        call = served.engine._llm.collective_rpc
        layers = list(served.policy.pairs(1))
        assert await call("unadaptable", args=([*layers, "model.layers.0.conv"],)) == [["model.layers.0.conv"]]


async def under_way(served, make_request):
    """A request that has sampled a token, of a few hundred more."""
    request = make_request(n=4, max_tokens=600 if served.kind == "vllm" else 60)
    task = asyncio.create_task(served.engine.generate(request))
    await asyncio.sleep(0)
    if served.kind == "vllm":
        await served.engine.generate(make_request(n=1, max_tokens=2, temperature=0))
        assert not task.done()
    return request, task


async def test_requests_end_with_the_version_that_they_began_with(served, make_request):
    began = served.engine.policy_version
    first, running = await under_way(served, make_request)
    await served.update()
    second, also_running = await under_way(served, make_request)
    if served.kind == "vllm":
        assert not running.done(), "two versions at once"
    await served.update()  # a third has no slot until the first is through
    await served.update()
    served.check(first, await running, began)
    served.check(second, await also_running, began + 1)
    later = make_request(n=2)
    served.check(later, await served.engine.generate(later), began + 3)


@pytest.mark.parametrize("mode", ["wait", "abort"])
async def test_running_requests_end_first_where_that_is_asked_for(served, make_request, mode):
    began = served.engine.policy_version
    request, running = await under_way(served, make_request)
    await served.update(mode)
    completions = await asyncio.wait_for(running, timeout=60)
    served.check(request, completions, began)
    later = make_request(n=2)
    served.check(later, await served.engine.generate(later), began + 1)


async def test_an_adapter_is_written_over_once_it_was_taken(served, make_request):
    version = served.engine.policy_version + 1
    offer = served.policy.offer(version)
    shared = MemoryFile(len(offer.address) + 64)
    shared.bytes[:-64] = offer.address
    await served.engine.take_weights(replace(offer, address=shared.bytes[:-64], path=shared.path), "keep")
    shared.bytes[:] = 0xFF  # NaN in every dtype
    request = make_request(n=2)
    served.check(request, await served.engine.generate(request), version)


async def test_what_is_no_whole_adapter_ends_service(served, make_request):
    version = served.engine.policy_version
    good = served.policy.offer(version + 1)
    named = [each for name, pair in served.policy.pairs(1).items() for each in named_pair(name, pair)]
    half = replace(packed(named[:-1], version + 1), kind="adapter", base_version=0)
    bad = half if served.kind == "vllm" else replace(good, kind="full", base_version=None)
    with pytest.raises(WeightError, match="whole pairs" if served.kind == "vllm" else "started for adapters"):
        await served.engine.take_weights(bad, "keep")
    assert served.engine.policy_version == version
    for attempt in (served.engine.generate(make_request()), served.engine.take_weights(good, "keep")):
        with pytest.raises(WeightError):
            await attempt


async def test_pairs_of_another_shape_are_refused() -> None:
    named = list(named_pair("layer", (torch.zeros(2, 5), torch.zeros(7, 2))))
    offer, blob = pack(named, 1)
    offer = replace(offer, address=blob, kind="adapter", base_version=0)
    verify_adapter(offer, {"layer.weight": (7, 5)})
    for shapes in ({"layer.weight": (5, 7)}, {"other.weight": (7, 5)}):
        with pytest.raises(WeightError, match="for layer, which is"):
            verify_adapter(offer, shapes)

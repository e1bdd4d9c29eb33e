"""What it takes to publish a policy of 538 MB to a vLLM engine on the learner's node, by each transport in turn, beside one copy in memory.

usage: python -m benchmarks.publishing --out FILE [--rounds 7]

Every round writes a new version, opens and checks it, and has the engine take it, once a transport. The first two rounds of each fill
their memory and do not count. Figures are medians of wall seconds and of CPU seconds of this process and vLLM's together; both have one
thread. `stopped` is the time from the pause of generation to its end. Then the same for a LoRA of rank 8 that is published alone, through
shared memory, to an engine of its own that was started for adapters; it is not stopped.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import ray
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from actors.config import RolloutConfig
from actors.engines.kinds import VllmConfig
from actors.engines.protocol import GenerationRequest
from actors.engines.vllm import VllmEngine
from actors.weights.block import verify
from actors.weights.object_store import ObjectStoreConfig
from actors.weights.shared_memory import SharedMemoryConfig
from actors.weights.transport import Transport
from benchmarks.figures import cpu_seconds_of, figure, resident_bytes, write_figures
from learner.adapters import Lora
from learner.config import LearnerConfig
from learner.job import LearnerJob
from learner.rank import LearnerRank

SHAPE = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
"""SmolLM2-135M: 134.5 million parameters, 538 MB in float32."""
FILLING = 2


def engine_processes() -> list[int]:
    """vLLM's, children of this process: what schedules, and what holds the model."""
    (engine,) = (child for child in psutil.Process().children(recursive=True) if "EngineCore" in child.name())
    return [engine.pid, *(worker.pid for worker in engine.children(recursive=True))]


class Stopwatch:
    """Wall and CPU seconds of what is awaited, by its name; a row for each version."""

    def __init__(self, engine: list[int]) -> None:
        self._pids = (os.getpid(), *engine)
        self.rows: list[dict[str, float]] = []

    async def time(self, phase: str, doing: Callable[[], Awaitable[Any]]) -> Any:
        wall, cpu = time.perf_counter(), self._cpu_seconds()
        result = await doing()
        self.rows[-1] |= {phase: time.perf_counter() - wall, f"{phase} cpu": self._cpu_seconds() - cpu}
        return result

    def _cpu_seconds(self) -> float:
        return sum(map(cpu_seconds_of, self._pids))

    def medians(self) -> dict[str, float]:
        counted = self.rows[FILLING:]
        return {name: median(row[name] for row in counted) for name in counted[0]}


class Publication:
    """A learner of one rank and one engine in this process; vLLM's own is beside it."""

    def __init__(self, policy: str, learner: LearnerConfig) -> None:
        config = RolloutConfig(engine=VllmConfig(kv_cache_gib=0.25), max_model_len=256)
        self.engine = VllmEngine(config, policy, 0, learner.published_adapter)
        self.rank = LearnerRank(learner, LearnerJob(policy, total_steps=100), 0, 1)
        self.version = 0

    async def start(self) -> None:
        self.rank.setup("127.0.0.1", 0, timeout_s=60.0)
        await self.engine.start()
        await self.engine.generate(GenerationRequest("first", (1, 2, 3), n=1, max_tokens=4))

    async def publish(self, transport: Transport, watch: Stopwatch) -> None:
        """One version, all the way."""
        self.version += 1
        watch.rows.append({})
        await watch.time("whole", lambda: self._published(transport, watch))
        await self.engine.generate(GenerationRequest(f"{self.version}", (1, 2, 3), n=1, max_tokens=4))

    async def _published(self, transport: Transport, watch: Stopwatch) -> None:
        offer, placed = await watch.time("written", lambda: self._written(transport))
        offer = await watch.time("opened", lambda: self._opened(transport, offer, placed))
        with Stopped(self.engine, watch):
            await watch.time("taken", lambda: self.engine.take_weights(offer, "keep"))

    async def _written(self, transport: Transport) -> Any:
        exported = self.rank.export_weights(self.version, transport.room)
        assert exported is not None
        offer, blob = exported
        placed = transport.place(blob, self.version, elsewhere=False)
        # What is returned to a driver goes into the object store.
        return offer, ray.put(placed)

    async def _opened(self, transport: Transport, offer: Any, placed: Any) -> Any:
        blob, path = transport.open(ray.get(placed))
        return replace(offer, address=blob, path=path)


class Stopped:
    """Between vLLM's pause and its going on."""

    def __init__(self, engine: VllmEngine, watch: Stopwatch) -> None:
        self._llm, self._watch = engine._llm, watch

    def __enter__(self) -> None:
        llm: Any = self._llm
        pause, resume = type(llm).pause_generation, type(llm).resume_generation

        async def paused(*arguments: Any, **options: Any) -> Any:
            self._began = time.perf_counter()
            return await pause(llm, *arguments, **options)

        async def resumed() -> Any:
            result = await resume(llm)
            self._watch.rows[-1]["stopped"] = time.perf_counter() - self._began
            return result

        llm.pause_generation, llm.resume_generation = paused, resumed

    def __exit__(self, *error: object) -> None:
        llm: Any = self._llm
        del llm.pause_generation, llm.resume_generation


def copies(size: int, rounds: int) -> float:
    """Median seconds of one copy of so many bytes into memory that has its pages."""
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        target[:] = source
        seconds.append(time.perf_counter() - started)
    return median(seconds)


async def measured(
    policy: str, rounds: int, learner: LearnerConfig, ends: dict[str, Transport]
) -> tuple[dict[str, Stopwatch], int, list[int]]:
    """By transport its times; bytes of a version; resident bytes of vLLM after each round."""
    publication = Publication(policy, learner)
    await publication.start()
    pids = engine_processes()
    watches = {kind: Stopwatch(pids) for kind in ends}
    resident = []
    for _ in range(FILLING + rounds):
        for kind, end in ends.items():
            await publication.publish(end, watches[kind])
        resident.append(sum(map(resident_bytes, pids)))
    exported = publication.rank.export_weights(publication.version)
    assert exported is not None
    offer, blob = exported
    verify(replace(offer, address=blob))
    await publication.engine.close()
    publication.rank.close()
    return watches, len(blob), resident


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=3 * 2**30, log_to_driver=False)
    with tempfile.TemporaryDirectory() as policy:
        AutoModelForCausalLM.from_config(SHAPE, dtype=torch.float32).save_pretrained(policy)
        ends: dict[str, Transport] = {each.kind: each.create() for each in (SharedMemoryConfig(), ObjectStoreConfig())}
        watches, size, resident = asyncio.run(measured(policy, arguments.rounds, LearnerConfig(), ends))
        alone = LearnerConfig(adapter=Lora(publish="adapter"))
        ends = {"adapter": SharedMemoryConfig().create()}
        adapter, adapter_size, _ = asyncio.run(measured(policy, arguments.rounds, alone, ends))
    ray.shutdown()
    figures = [figure("one copy", copies(size, arguments.rounds), "s")]
    for kind, watch in (watches | adapter).items():
        for phase, seconds in watch.medians().items():
            figures.append(figure(f"{kind} {phase}", seconds, "s"))
    figures.append(
        figure("memory of vLLM after the last round / after the first", resident[-1] / resident[FILLING], "1")
    )
    figures.append(figure("bytes of an adapter / of the policy", adapter_size / size, "1"))
    rounds = {kind: watch.rows for kind, watch in (watches | adapter).items()}
    write_figures(arguments.out, figures, bytes=size, rounds=rounds, adapter_bytes=adapter_size)


if __name__ == "__main__":
    main()

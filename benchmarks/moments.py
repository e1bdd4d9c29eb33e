"""The moments service under load: groups a second, time to a durable acknowledgement, memory, and what clusters cost.

usage: python -m benchmarks.moments --out benchmarks/results/moments.json [--repetitions 5]

Sides that are compared run in turn; of the repetitions the fastest counts, since other programs only ever slow one down.
"""

import argparse
import asyncio
import ctypes
import gc
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.figures import Figure, cpu_seconds_of, figure, resident_bytes, write_figures
from benchmarks.load import DIMENSION, Feed, RayClient, World
from moments_service.clusters import Codebook
from moments_service.service import MomentsService
from moments_service.state import MomentsState

CLUSTERS = 4096
SIZES = (256, 1024, 4096, 16384, 65536)
PROMPTS = 16384
PHASES = ("submit", "draw", "commit")


@asynccontextmanager
async def in_process(world: World, directory: Path, **feed: Any) -> AsyncIterator[Feed]:
    """A service in this process."""
    world.begin(directory)
    service = MomentsService(world.config(), directory, seed=0)
    try:
        await service.fit_clusters(world.prompts)
        yield Feed(service, world, **feed)
    finally:
        await service.close()


@asynccontextmanager
async def through_ray(world: World, directory: Path, **feed: Any) -> AsyncIterator[Feed]:
    """A service in a Ray actor, whose groups carry real object references."""
    world.begin(directory)
    client = RayClient(world.config(), directory)
    await client.fit_clusters(world.prompts)
    try:
        yield Feed(client, world, payload=ray.put("tokens"), **feed)
    finally:
        await client.close()


async def throughput(scratch: Path, repetitions: int) -> list[Figure]:
    """The whole loop at 4,096 clusters, in process and through Ray in turn, and each phase alone."""
    world = World(CLUSTERS, PROMPTS)
    rows: list[Figure] = []
    for size, tables, batches in ((256, 8, 6), (256, 2, 24), (64, 2, 48)):
        best: dict[str, float] = {}
        alone: dict[str, dict[str, float]] = {"in process": {}, "through Ray": {}}
        folder = scratch / f"throughput-{size}-{tables}"
        shape: dict[str, Any] = {"size": size, "tables": tables}
        async with (
            in_process(world, folder / "own", **shape) as own,
            through_ray(world, folder / "ray", **shape) as rayed,
        ):
            for feed in (own, rayed):
                await feed.overlapping(feed.make(2))
            for _ in range(repetitions):
                for side, feed in (("in process", own), ("through Ray", rayed)):
                    made = feed.make(batches)
                    gc.collect()
                    seconds = await feed.overlapping(made)
                    groups = batches * feed.groups
                    best[side] = max(best.get(side, 0.0), groups / seconds)
                    for phase, spent in (await feed.one_after_another(feed.make(max(batches // 3, 1)))).items():
                        each = spent / (max(batches // 3, 1) * feed.groups)
                        alone[side][phase] = min(alone[side].get(phase, np.inf), each)
        main = tables == 8
        what = f"batches of {size * tables} in tables of {size}"
        rows += [
            figure(f"through Ray, {what}", best["through Ray"], "groups/s", "higher", 20_000 if main else None),
            figure(f"in process, {what}", best["in process"], "groups/s", "higher"),
            figure(
                f"through Ray to in process, {what}",
                best["through Ray"] / best["in process"],
                "1",
                "higher",
                0.5 if main else None,
            ),
        ]
        rows += [
            figure(f"{phase} alone, {side}, {what}", 1e6 * alone[side][phase], "us/group")
            for side in alone
            for phase in PHASES
        ]
    return rows


async def through_ray_cpu(scratch: Path, repetitions: int) -> list[Figure]:
    """CPU seconds that the service itself spends on a group, packed and in a call of its own."""
    world = World(CLUSTERS, PROMPTS)
    async with through_ray(world, scratch / "cpu", size=256, tables=8) as feed:
        pid = _actor_process("ray::MomentsActor")
        await feed.overlapping(feed.make(2))
        packed = np.inf
        for _ in range(repetitions):
            made = feed.make(6)
            before = cpu_seconds_of(pid)
            await feed.overlapping(made)
            packed = min(packed, (cpu_seconds_of(pid) - before) / (6 * feed.groups))
        before, calls = cpu_seconds_of(pid), 1000
        await feed.latencies(rate=300.0, count=calls, together=1, batch=calls)
        call = (cpu_seconds_of(pid) - before) / calls
    return [
        figure("CPU of the service, through Ray", 1e6 * packed, "us/group"),
        figure("CPU of the service for one group in a call of its own, through Ray", 1e6 * call, "us/group"),
    ]


async def service_times(scratch: Path, repetitions: int) -> list[Figure]:
    """CPU seconds of a group in the event loop and in the writing thread, in process; and one small transaction's time."""
    world = World(CLUSTERS, PROMPTS)
    loop = writer = sync = np.inf
    async with in_process(world, scratch / "times", size=256, tables=8) as feed:
        await feed.overlapping(feed.make(2))
        for _ in range(repetitions):
            made = feed.make(6)
            own, whole = time.thread_time(), time.process_time()
            await feed.one_after_another(made)
            own, whole = time.thread_time() - own, time.process_time() - whole
            loop = min(loop, own / (6 * feed.groups))
            writer = min(writer, (whole - own) / (6 * feed.groups))
    async with in_process(world, scratch / "sync", size=1) as feed:
        for sent in feed.make(100 * repetitions):
            started = time.perf_counter()
            await feed.client.submit_table(*sent)
            sync = min(sync, time.perf_counter() - started)
    return [
        figure("CPU of the event loop", 1e6 * loop, "us/group"),
        figure("CPU of the writer", 1e6 * writer, "us/group"),
        figure("one group alone, in process, to the disk", 1e3 * sync, "ms"),
    ]


async def latency(scratch: Path, repetitions: int) -> list[Figure]:
    """1,000 groups a second through Ray, in calls of 8 groups and of one, while batches are taken and committed."""
    world = World(CLUSTERS, PROMPTS)
    best: dict[tuple[int, int], float] = {}
    async with through_ray(world, scratch / "latency", size=256) as feed:
        await feed.latencies(rate=1000.0, count=1024, together=8, batch=512)
        for together in (8, 1):
            for _ in range(repetitions):
                waited = await feed.latencies(rate=1000.0, count=2048, together=together, batch=512)
                for share in (50, 99):
                    found = 1e3 * float(np.percentile(waited, share))
                    best[together, share] = min(best.get((together, share), np.inf), found)
    return [
        figure(
            f"submit to durable acknowledge at 1,000 groups/s, {together} in a call, p{share}",
            value,
            "ms",
            target=50.0 if (together, share) == (8, 99) else None,
        )
        for (together, share), value in best.items()
    ]


async def cost_by_clusters(scratch: Path, repetitions: int) -> list[Figure]:
    """CPU seconds of a group in process, the writer's included, for every number of clusters in turn."""
    worlds = {clusters: World(clusters, max(clusters, PROMPTS)) for clusters in SIZES}
    best = dict.fromkeys(SIZES, np.inf)
    for repetition in range(repetitions):
        for clusters, world in worlds.items():
            async with in_process(world, scratch / f"cost-{clusters}-{repetition}", size=512) as feed:
                await feed.one_after_another(feed.make(2))
                made = feed.make(12)
                gc.collect()
                before = time.process_time()
                await feed.one_after_another(made)
                spent = time.process_time() - before
            best[clusters] = min(best[clusters], spent / (12 * feed.groups))
    rows = [figure(f"CPU at {clusters} clusters", 1e6 * best[clusters], "us/group") for clusters in SIZES]
    spread = max(best.values()) / min(best.values())
    return [*rows, figure("dearest to cheapest number of clusters", spread, "1", target=1.3)]


def memory() -> list[Figure]:
    """Bytes that a process grows by for each cluster, beyond its centroid: index, moments, health."""
    rows = []
    for clusters in (1024, CLUSTERS, 65536):
        with tempfile.TemporaryDirectory() as folder:
            World(clusters, 1).codebook.save(path := Path(folder) / "codebook.safetensors")
            code = f"from benchmarks.moments import grown_bytes; print(grown_bytes({str(path)!r}, {65536 // clusters}))"
            grown = float(_python("-c", code))
        target = 1024.0 if clusters == CLUSTERS else None
        name = f"memory beyond its centroid at {clusters} clusters"
        rows.append(figure(name, grown / 65536 - 4 * DIMENSION, "bytes/cluster", target=target))
    return rows


def grown_bytes(path: str, copies: int) -> int:
    """Resident bytes of so many codebooks with their index and the state over each. Run in a process of its own."""

    def one() -> tuple[Codebook, MomentsState]:
        codebook = Codebook.load(Path(path))
        return codebook, MomentsState(World(1, 1).config(), len(codebook))

    one()
    before = _resident()
    held = [one() for _ in range(copies)]
    gc.collect()
    assert len(held) == copies
    return _resident() - before


def import_time(repetitions: int) -> list[Figure]:
    """Seconds for a new process to import the service, beyond an empty one; bytecode is compiled by then."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {"PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}

        def best(code: str) -> float:
            return min(_seconds(lambda: _python("-c", code, **environment)) for _ in range(repetitions + 1))

        seconds = best("import moments_service.service") - best("pass")
    return [figure("import of the service, without the encoder", seconds, "s", target=1.0)]


def _python(*arguments: str, **environment: str) -> str:
    root = Path(__file__).parents[1]
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, check=True, capture_output=True, encoding="utf-8", cwd=root, env={**os.environ, **environment}
    )
    return done.stdout


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _resident() -> int:
    """Bytes of this process in memory, without what it has freed and the allocator keeps."""
    ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes(os.getpid())


def _actor_process(title: str) -> int:
    """The newest process of that title."""
    processes = [path for path in Path("/proc").iterdir() if path.name.isdigit()]
    found = [int(path.name) for path in processes if title in _title(path)]
    return max(found)


def _title(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace")
    except OSError:  # it has ended
        return ""


async def measure(repetitions: int) -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        try:
            ray.init(
                address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            )
            for section in (throughput, latency, through_ray_cpu):
                figures += await section(scratch, repetitions)
        finally:
            ray.shutdown()
        figures += await service_times(scratch, repetitions)
        figures += await cost_by_clusters(scratch, repetitions)
    return figures + memory() + import_time(repetitions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    figures = asyncio.run(measure(arguments.repetitions))
    conditions = {
        "repetitions": arguments.repetitions,
        "counted": "the best",
        "load_average_before": load_before,
        "load_average_after": os.getloadavg()[0],
    }
    write_figures(arguments.out, figures, conditions=conditions)


if __name__ == "__main__":
    main()

"""A load for the moments service: prompts, tables of scored groups, and the loop of a run around a service.

The loop speaks to a service through a `Door`, so that the same work runs in one process and through Ray.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray

from moments_service.actor import spawn_moments_actor
from moments_service.batch import Batch
from moments_service.clusters import Codebook, PromptSet
from moments_service.config import ClusterConfig, MomentsConfig
from moments_service.portable import WarmStart
from moments_service.service import MomentsService
from moments_service.table import GroupTable

DIMENSION = 384
GROUP_SIZE = 8
SOURCES = ("arithmetic", "algebra", "logic", "geometry")


class World:
    """Random clusters and prompts near them. Every table is made from (seed, number), so all sides see the same load."""

    def __init__(self, clusters: int, prompts: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.codebook = Codebook(_unit(generator.normal(size=(clusters, DIMENSION))))
        self._cluster = np.arange(prompts) % clusters
        self._ids = tuple(hashlib.sha256(f"prompt {row}".encode()).hexdigest()[:16] for row in range(prompts))
        self._sources = tuple(SOURCES[row % len(SOURCES)] for row in range(prompts))
        self._solved = generator.beta(0.5, 0.5, size=clusters)
        noise = generator.normal(scale=0.3 / np.sqrt(DIMENSION), size=(prompts, DIMENSION))
        self._embeddings = _unit(self.codebook.centroids[self._cluster] + noise)

    @property
    def prompts(self) -> PromptSet:
        return PromptSet(self._ids, self._sources, ("",) * len(self._ids), self._embeddings)

    def table(self, number: int, size: int, embeddings: bool) -> GroupTable:
        """Table `number` of the feed: `size` groups of 8 binary rewards.

        embeddings: whether headers carry them, as they do for prompts that the clusters were not made of.
        """
        generator = np.random.default_rng((number, size))
        rows = generator.integers(0, len(self._ids), size)
        picked = rows.tolist()
        sequence = np.arange(number * size, (number + 1) * size)
        solved = self._solved[self._cluster[rows]]
        return GroupTable(
            group_ids=tuple(f"{self._ids[row]}:0:{at}:0" for row, at in zip(picked, sequence.tolist(), strict=True)),
            prompt_ids=tuple(self._ids[row] for row in picked),
            sources=tuple(self._sources[row] for row in picked),
            difficulties=("",) * size,
            sequence=sequence,
            sizes=np.full(size, GROUP_SIZE),
            rewards=(generator.random((size, GROUP_SIZE)) < solved[:, None]).astype(np.float64),
            errors=(None,) * size,
            lengths=generator.integers(1, 2000, (size, GROUP_SIZE)),
            truncated=generator.random((size, GROUP_SIZE)) < 0.01,
            policy_versions=np.full((size, 2), number),
            lost=np.zeros(size, dtype=np.bool_),
            embeddings=self._embeddings[rows] if embeddings else None,
        )

    def begin(self, directory: Path) -> None:
        """Leave the codebook in the directory of a service that has not started."""
        directory.mkdir(parents=True)
        WarmStart(self.codebook).place(directory)

    def config(self) -> MomentsConfig:
        return MomentsConfig(clusters=ClusterConfig(count=len(self.codebook)))


class Door(Protocol):
    """How a service is reached."""

    def submit_table(self, table: GroupTable, payloads: list[Any]) -> Awaitable[None]: ...

    def next_batch(self, step: int, groups: int) -> Awaitable[Batch]: ...

    def commit(self, step: int, policy_version: int) -> Awaitable[None]: ...

    def fit_clusters(self, prompts: PromptSet) -> Awaitable[int]: ...

    def close(self) -> Awaitable[None]: ...


class RayDoor:
    """A MomentsActor in a process of its own."""

    def __init__(self, world: World, directory: Path) -> None:
        self.actor = spawn_moments_actor(world.config(), directory, seed=0, incarnation=0, snapshot=None)

    async def submit_table(self, table: GroupTable, payloads: list[Any]) -> None:
        await self.actor.submit_table.remote(table, payloads)

    async def next_batch(self, step: int, groups: int) -> Batch:
        batch: Batch = await self.actor.next_batch.remote(step, groups)
        return batch

    async def commit(self, step: int, policy_version: int) -> None:
        await self.actor.commit.remote(step, policy_version)

    async def fit_clusters(self, prompts: PromptSet) -> int:
        clusters: int = await self.actor.fit_clusters.remote(prompts)
        return clusters

    async def close(self) -> None:
        await self.actor.close.remote()
        ray.kill(self.actor)


def in_process(world: World, directory: Path) -> Door:
    return MomentsService(world.config(), directory, seed=0)


@dataclass
class Feed:
    """One service under load: where it is in the feed and how its senders send.

    payload: handle of the tokens of one table; each group gets (payload, row), as from a sender that leaves the tokens of
    a whole table in one object.
    """

    door: Door
    world: World
    size: int
    embeddings: bool
    payload: Any = "tokens"
    next_table: int = 0
    step: int = 0

    def tables(self, count: int) -> list[tuple[GroupTable, list[Any]]]:
        """The next tables of the feed, made ahead of the measurement."""
        numbers = range(self.next_table, self.next_table + count)
        self.next_table += count
        return [
            (self.world.table(number, self.size, self.embeddings), [(self.payload, row) for row in range(self.size)])
            for number in numbers
        ]

    async def one_after_another(self, count: int) -> dict[str, float]:
        """Seconds of each phase where nothing overlaps: submit a table, blend it, commit it."""
        seconds = dict.fromkeys(("submit", "next_batch", "commit"), 0.0)
        for table, payloads in self.tables(count):
            started = time.perf_counter()
            await self.door.submit_table(table, payloads)
            submitted = time.perf_counter()
            await self.door.next_batch(self.step, self.size)
            blended = time.perf_counter()
            await self.door.commit(self.step, self.step + 1)
            seconds["commit"] += time.perf_counter() - blended
            seconds["next_batch"] += blended - submitted
            seconds["submit"] += submitted - started
            self.step += 1
        return seconds

    async def overlapping(self, count: int, ahead: int = 3) -> float:
        """Seconds for `count` tables, from the first submit to the last commit; senders are up to `ahead` tables ahead."""
        tables = self.tables(count)
        slots = asyncio.Semaphore(ahead)
        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send(tables, slots, tasks))
            for _ in range(count):
                await self.door.next_batch(self.step, self.size)
                await self.door.commit(self.step, self.step + 1)
                self.step += 1
                slots.release()
        return time.perf_counter() - started

    async def _send(
        self, tables: Sequence[tuple[GroupTable, list[Any]]], slots: asyncio.Semaphore, tasks: asyncio.TaskGroup
    ) -> None:
        for table, payloads in tables:
            await slots.acquire()
            tasks.create_task(self.door.submit_table(table, payloads))  # type: ignore[arg-type]


def arrivals(rate: float, count: int, seed: int) -> Iterator[float]:
    """Seconds at which `count` groups of a Poisson process of `rate` a second arrive."""
    return iter(np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate, count)).tolist())


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

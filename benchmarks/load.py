"""A load for the moments service: prompts, tables of scored groups, and the loop of a run around a service.

The loop speaks to a service through a `Client`, so that the same work runs in one process and through Ray.
"""

import asyncio
import hashlib
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray

from moments_service.actor import spawn_moments_actor
from moments_service.clusters import Codebook, PromptSet
from moments_service.config import ClusterConfig, MomentsConfig
from moments_service.messages.batch import Batch
from moments_service.messages.table import GroupTable
from moments_service.offline.portable import WarmStart

Sent = tuple[GroupTable, list[Any]]
"""A table and the handles of its groups' tokens."""
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

    def table(self, number: int, size: int) -> GroupTable:
        """Table `number` of the feed: `size` groups of 8 binary rewards."""
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
            turns=np.ones((size, GROUP_SIZE), dtype=np.int64),
            prompt_tokens=np.full(size, 200),
            read=np.zeros((size, GROUP_SIZE), dtype=np.int64),
            lost=np.zeros(size, dtype=np.bool_),
            parts=(None,) * size,
        )

    def begin(self, directory: Path) -> None:
        """Leave the codebook in the directory of a service that has not started."""
        directory.mkdir(parents=True)
        WarmStart(self.codebook).place(directory)

    def config(self) -> MomentsConfig:
        return MomentsConfig(clusters=ClusterConfig(count=len(self.codebook)))


class Client(Protocol):
    """How a service is reached."""

    def submit_table(self, table: GroupTable, payloads: list[Any]) -> Coroutine[Any, Any, None]: ...

    def draw(self, step: int, group_ids: Sequence[str]) -> Coroutine[Any, Any, Batch]: ...

    def commit(self, step: int, policy_version: int) -> Coroutine[Any, Any, None]: ...

    def fit_clusters(self, prompts: PromptSet) -> Coroutine[Any, Any, int]: ...

    def close(self) -> Coroutine[Any, Any, None]: ...


class RayClient:
    """A MomentsActor in a process of its own."""

    def __init__(self, config: MomentsConfig, directory: Path) -> None:
        self.actor = spawn_moments_actor(config, directory, seed=0, incarnation=0, snapshot=None)

    async def submit_table(self, table: GroupTable, payloads: list[Any]) -> None:
        await self.actor.submit_table.remote(table, payloads)

    async def draw(self, step: int, group_ids: Sequence[str]) -> Batch:
        batch: Batch = await self.actor.draw.remote(step, group_ids)
        return batch

    async def commit(self, step: int, policy_version: int) -> None:
        await self.actor.commit.remote(step, policy_version)

    async def fit_clusters(self, prompts: PromptSet) -> int:
        clusters: int = await self.actor.fit_clusters.remote(prompts)
        return clusters

    async def close(self) -> None:
        await self.actor.close.remote()
        ray.kill(self.actor)


@dataclass
class Feed:
    """One service under load: where it is in the feed and how its senders send.

    size: groups of a table.    tables: of a batch.    payload: handle of the tokens of one table; each group gets (payload,
    row), as from a sender that leaves the tokens of a whole table in one object.
    """

    client: Client
    world: World
    size: int
    tables: int = 1
    payload: Any = "tokens"
    next_table: int = 0
    step: int = 0

    @property
    def groups(self) -> int:
        """Groups of a batch."""
        return self.size * self.tables

    def make(self, batches: int) -> list[Sent]:
        """The next tables of the feed, made ahead of the measurement."""
        numbers = range(self.next_table, self.next_table + batches * self.tables)
        self.next_table = numbers.stop
        handles = [(self.payload, row) for row in range(self.size)]
        return [(self.world.table(number, self.size), handles) for number in numbers]

    async def one_after_another(self, made: Sequence[Sent]) -> dict[str, float]:
        """Seconds of each phase where nothing overlaps: submit the tables of a batch, blend it, commit it."""
        seconds = dict.fromkeys(("submit", "draw", "commit"), 0.0)
        for first in range(0, len(made), self.tables):
            started = time.perf_counter()
            sending = made[first : first + self.tables]
            ids = _ids(sending)
            await asyncio.gather(*(self.client.submit_table(*sent) for sent in sending))
            submitted = time.perf_counter()
            await self.client.draw(self.step, ids)
            blended = time.perf_counter()
            await self.client.commit(self.step, self.step + 1)
            seconds["commit"] += time.perf_counter() - blended
            seconds["draw"] += blended - submitted
            seconds["submit"] += submitted - started
            self.step += 1
        return seconds

    async def overlapping(self, made: Sequence[Sent], ahead: int = 3) -> float:
        """Seconds from the first submit to the last commit; senders are up to `ahead` batches ahead of the learner."""
        slots = asyncio.Semaphore(ahead * self.tables)
        batches = [made[first : first + self.tables] for first in range(0, len(made), self.tables)]
        ids = [_ids(batch) for batch in batches]
        started = time.perf_counter()

        async def send(one: Sent) -> None:
            await slots.acquire()
            await self.client.submit_table(*one)

        sending = [[asyncio.create_task(send(one)) for one in batch] for batch in batches]
        for tasks, drawn in zip(sending, ids, strict=True):
            await asyncio.gather(*tasks)
            await self.client.draw(self.step, drawn)
            await self.client.commit(self.step, self.step + 1)
            self.step += 1
            for _ in range(self.tables):
                slots.release()
        return time.perf_counter() - started

    async def latencies(self, rate: float, count: int, together: int, batch: int) -> list[float]:
        """Seconds from submit to acknowledge of `count` groups that arrive at random, `together` in a call, `rate` a second.

        A batch is taken and committed whenever `batch` groups are there. Late arrivals count from when they were due.
        """
        table = self.world.table(self.next_table, count)
        self.next_table += 1
        calls = count // together
        rows = [table.take(range(call * together, (call + 1) * together)) for call in range(calls)]
        handles = [(self.payload, row) for row in range(together)]
        due = np.cumsum(np.random.default_rng(self.next_table).exponential(together / rate, calls))
        began = time.perf_counter() + 0.1
        waited: list[float] = []

        async def send(call: int) -> None:
            await asyncio.sleep(began + due[call] - time.perf_counter())
            await self.client.submit_table(rows[call], handles)
            waited.append(time.perf_counter() - began - due[call])

        sending = [asyncio.create_task(send(call)) for call in range(calls)]
        each = batch // together
        for first in range(0, calls - each + 1, each):
            await asyncio.gather(*sending[first : first + each])
            ids = [group_id for call in range(first, first + each) for group_id in rows[call].group_ids]
            await self.client.draw(self.step, ids)
            await self.client.commit(self.step, self.step + 1)
            self.step += 1
        await asyncio.gather(*sending)
        return waited


def _ids(sent: Sequence[Sent]) -> list[str]:
    return [group_id for table, _ in sent for group_id in table.group_ids]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

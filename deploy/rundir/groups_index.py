"""A small index in memory over all groups of a ledger: what they are searched by, 35 bytes each, newest first."""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from deploy.rundir.ledger_rows import Incarnation, LedgerRows
from deploy.rundir.outcomes import Outcome, outcomes, rescued
from moments_service.messages.table import padded

_BLOCK_ROWS = 16_384
_RESCUED = 16
"""Bit beside the outcome: GRPO would have wasted this group, and it carries signal."""

_decode = msgspec.json.Decoder(list[list[float | None]]).decode


@dataclass(frozen=True, slots=True)
class Block:
    """Groups of some whole steps of one incarnation, in order of step and feed. Arrays [N]."""

    step: npt.NDArray[np.int32]
    sequence: npt.NDArray[np.int64]
    key: npt.NDArray[np.uint64]
    """The first eight characters of the id, in order."""
    cluster: npt.NDArray[np.int32]
    source: npt.NDArray[np.uint16]
    kind: npt.NDArray[np.uint8]
    reward: npt.NDArray[np.float32]
    """Mean of the group's rewards; NaN without any."""
    weight: npt.NDArray[np.float32]
    """Trust in history; NaN if not trained on."""

    def __len__(self) -> int:
        return len(self.step)

    def joined(self, other: "Block") -> "Block":
        """This block with a later one behind it."""
        names = (field.name for field in fields(self))
        return Block(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look for; None and "" are for anything."""

    id_prefix: str = ""
    cluster: int | None = None
    step: int | None = None
    source: str = ""
    outcome: str = ""
    """A name of `Outcome` in lower case, or `rescued`."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a group stands. Newer ones are greater."""

    incarnation: int
    step: int
    row: int
    """In its step, by feed order and id."""

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Read what `str` wrote. Raises ValueError."""
        incarnation, step, row = text.split(".")
        return cls(int(incarnation), int(step), int(row))

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.step}.{self.row}"


@dataclass(frozen=True, slots=True)
class Found:
    """One hit: its place, and what its rows in the ledger are found by."""

    place: Place
    sequence: int
    twin: int
    """How many groups of the same step and place in the feed stand before it: earlier attempts."""
    key: int
    """The first eight characters of its id: the same for all groups of a prompt."""


class GroupsIndex:
    """Follows the commits of a ledger. Safe from several threads; readers see whole steps only."""

    def __init__(self, ledger: LedgerRows) -> None:
        self._ledger = ledger
        # One thread reads the ledger; whoever searches waits only while a finished block is put in its place.
        self._reading = threading.Lock()
        self._lock = threading.Lock()
        self._blocks: dict[int, deque[Block]] = {}
        self._steps_read: dict[int, tuple[int, int]] = {}
        self._incarnations: list[Incarnation] = []
        self._steps_a_chunk = 64
        self._sources: dict[str, int] = {}
        self._counts: Counter[tuple[int, int]] = Counter()
        self.version = 0
        """Grows whenever anything was read."""

    def catch_up(self, budget_s: float) -> bool:
        """Read commits for about `budget_s` seconds, new ones first, then older and older. Returns whether all are in."""
        deadline = time.monotonic() + budget_s
        if not self._reading.acquire(blocking=False):
            return False
        try:
            with self._ledger.reading():
                return self._follow(deadline)
        finally:
            self._reading.release()

    @property
    def share_read(self) -> float:
        """How much of the ledger is in here, by steps, in [0, 1]."""
        total = sum(_steps_of(one) for one in self._incarnations)
        done = sum(high - low + 1 for low, high in self._steps_read.values())
        return done / total if total else 1.0

    @property
    def nbytes(self) -> int:
        blocks = [block for blocks in list(self._blocks.values()) for block in list(blocks)]
        return sum(getattr(block, field.name).nbytes for block in blocks for field in fields(block))

    @property
    def groups(self) -> int:
        return sum(self._counts.values())

    def incarnations(self) -> list[Incarnation]:
        """Every start of the run, oldest first, as of the last `catch_up`."""
        return self._incarnations

    def sources(self) -> list[str]:
        return sorted(self._sources)

    def sources_of_clusters(self) -> dict[int, Counter[str]]:
        """How many groups of each source every cluster had."""
        with self._lock:
            names = list(self._sources)
            found: dict[int, Counter[str]] = {}
            for (cluster, source), count in self._counts.items():
                found.setdefault(cluster, Counter())[names[source]] = count
            return found

    def search(self, wanted: Wanted, before: Place | None, limit: int) -> list[Found]:
        """The newest groups that fit, at most `limit`, older than `before`. An id of more than eight characters may not fit."""
        found: list[Found] = []
        for incarnation, block in self._newest_first():
            if before is not None and (incarnation, int(block.step[0])) > (before.incarnation, before.step):
                continue
            for row in np.flatnonzero(self._mask(block, wanted))[::-1].tolist():
                hit = _found(incarnation, block, row)
                if before is None or hit.place < before:
                    found.append(hit)
                    if len(found) == limit:
                        return found
        return found

    def count(self, wanted: Wanted) -> int:
        """How many groups fit."""
        return sum(int(np.count_nonzero(self._mask(block, wanted))) for _, block in self._newest_first())

    def of_cluster(self, cluster: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(step, mean reward, trust) of every group of a cluster; NaN where there is none."""
        steps, rewards, weights = [np.zeros(0, dtype=np.int64)], [np.zeros(0)], [np.zeros(0)]
        for _, block in self._newest_first():
            rows = np.flatnonzero(block.cluster == cluster)
            steps.append(block.step[rows].astype(np.int64))
            rewards.append(block.reward[rows].astype(np.float64))
            weights.append(block.weight[rows].astype(np.float64))
        return np.concatenate(steps), np.concatenate(rewards), np.concatenate(weights)

    def _newest_first(self) -> Iterator[tuple[int, Block]]:
        with self._lock:
            blocks = {number: list(blocks) for number, blocks in self._blocks.items()}
        for number in sorted(blocks, reverse=True):
            for block in reversed(blocks[number]):
                yield number, block

    def _mask(self, block: Block, wanted: Wanted) -> npt.NDArray[np.bool_]:
        mask = np.ones(len(block), dtype=np.bool_)
        if wanted.step is not None:
            mask &= block.step == wanted.step
        if wanted.cluster is not None:
            mask &= block.cluster == wanted.cluster
        if wanted.source:
            mask &= block.source == self._sources.get(wanted.source, -1)
        if wanted.outcome == "rescued":
            mask &= (block.kind & _RESCUED) > 0
        elif wanted.outcome:
            mask &= (block.kind & ~np.uint8(_RESCUED)) == Outcome[wanted.outcome.upper()]
        if wanted.id_prefix:
            start = wanted.id_prefix.encode()[:8]
            low, high = start.ljust(8, b"\0"), start.ljust(8, b"\xff")
            mask &= (block.key >= int.from_bytes(low, "big")) & (block.key <= int.from_bytes(high, "big"))
        return mask

    def _follow(self, deadline: float) -> bool:
        self._incarnations = self._ledger.incarnations()
        while (chunk := self._next_chunk()) is not None:
            self._read(*chunk)
            self.version += 1
            if time.monotonic() > deadline:
                return self._next_chunk() is None
        return True

    def _next_chunk(self) -> tuple[int, int, int] | None:
        """(incarnation, first step, last step) to read next: what is new, then what is older."""
        for one in reversed(self._incarnations):
            if one.first_step is None or one.last_step is None:
                continue
            read = self._steps_read.get(one.number)
            if read is None:
                return one.number, max(one.first_step, one.last_step - self._steps_a_chunk + 1), one.last_step
            if read[1] < one.last_step:
                return one.number, read[1] + 1, min(one.last_step, read[1] + self._steps_a_chunk)
            if read[0] > one.first_step:
                return one.number, max(one.first_step, read[0] - self._steps_a_chunk), read[0] - 1
        return None

    def _read(self, incarnation: int, first: int, last: int) -> None:
        rows = self._ledger.columns(incarnation, first, last)
        self._steps_a_chunk = max(1, (last - first + 1) * _BLOCK_ROWS // max(len(rows), 1))
        block = self._block(rows) if rows else None
        with self._lock:
            low, high = self._steps_read.get(incarnation, (first, last))
            self._steps_read[incarnation] = (min(low, first), max(high, last))
            if block is not None:
                self._place(incarnation, block)

    def _place(self, incarnation: int, block: Block) -> None:
        pairs = block.cluster.astype(np.int64) * 2**16 + block.source.astype(np.int64)
        codes, counts = np.unique(pairs, return_counts=True)
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
            self._counts[code >> 16, code & 0xFFFF] += count
        blocks = self._blocks.setdefault(incarnation, deque())
        if not blocks or block.step[0] < blocks[0].step[0]:
            blocks.appendleft(block)
        elif len(blocks[-1]) + len(block) <= _BLOCK_ROWS:
            blocks[-1] = blocks[-1].joined(block)
        else:
            blocks.append(block)

    def _block(self, rows: list[tuple[Any, ...]]) -> Block:
        steps, sequences, ids, sources, clusters, lost, rewards_json, advantages_json, weights = zip(*rows, strict=True)
        for source in sources:
            self._sources.setdefault(source, len(self._sources) & 0xFFFF)
        rewards = _table(rewards_json)
        closed = np.array([text is None for text in advantages_json]) | np.array(lost, dtype=np.bool_)
        advantages = _table([text or "[]" for text in advantages_json])
        known = ~np.isnan(rewards)
        counts = known.sum(axis=1)
        means = np.where(counts > 0, np.nansum(rewards, axis=1) / np.maximum(counts, 1), np.nan)
        kind = outcomes(rewards, closed) | np.where(rescued(rewards, advantages), np.uint8(_RESCUED), np.uint8(0))
        keys = b"".join(name.encode()[:8].ljust(8, b"\0") for name in ids)
        return Block(
            step=np.array(steps, dtype=np.int32),
            sequence=np.array(sequences, dtype=np.int64),
            key=np.frombuffer(keys, dtype=">u8").astype(np.uint64),
            cluster=np.array(clusters, dtype=np.int32),
            source=np.array([self._sources[source] for source in sources], dtype=np.uint16),
            kind=kind.astype(np.uint8),
            reward=means.astype(np.float32),
            weight=np.array(weights, dtype=np.float32),
        )


def _table(texts: tuple[str, ...] | list[str]) -> npt.NDArray[np.float64]:
    """JSON lists as rows, [N, G], NaN past their ends and for null."""
    lists = _decode(f"[{','.join(texts)}]")
    return padded(lists, max(map(len, lists), default=0), np.nan)


def _found(incarnation: int, block: Block, row: int) -> Found:
    step, sequence = int(block.step[row]), int(block.sequence[row])
    first = int(np.searchsorted(block.step, step))
    twin = 0
    while row - twin - 1 >= first and block.sequence[row - twin - 1] == sequence:
        twin += 1
    return Found(Place(incarnation, step, row - first), sequence, twin, int(block.key[row]))


def _steps_of(one: Incarnation) -> int:
    return 0 if one.first_step is None or one.last_step is None else one.last_step - one.first_step + 1

"""Which queries see which keys in packed tries, as blocks without a mask inside."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from learner.batching.packed import Index, Segments

Where = slice | torch.Tensor
"""Tokens: a range of them, or [n] int64 indices."""


@dataclass(frozen=True, slots=True)
class Call:
    """Blocks of one shape that are computed together: n of them, of `queries` by `keys` tokens."""

    count: int
    query_at: Where
    queries: int
    key_at: Where
    keys: int


@dataclass(frozen=True, slots=True)
class VarlenCall:
    """n blocks of any shapes that are computed together, one after the other in the tokens that are taken for them."""

    places: tuple[Where, Where, Where]
    """Tokens of queries, keys and values; none twice in one of them."""
    query_starts: torch.Tensor
    """[n + 1] int32 first query of each block; the last entry is how many there are."""
    key_starts: torch.Tensor
    longest_query: int
    longest_key: int
    causal: bool


class TrieBlocks:
    """The blocks of a microbatch; made once, read by every layer.

    Every segment sees itself causally, and all that lies below a segment, which is one range of tokens, sees all of it.
    """

    def __init__(self, segments: Segments, positions: torch.Tensor) -> None:
        self.segments = segments
        self.device = positions.device
        self.positions = positions

    @cached_property
    def longest(self) -> int:
        """Tokens on the longest path."""
        depths: list[int] = []
        for parent, size in zip(self.segments.parents.tolist(), np.diff(self.segments.starts).tolist(), strict=True):
            depths.append(size + (depths[parent] if parent >= 0 else 0))
        return max(depths)

    @cached_property
    def branches(self) -> Index:
        """[B, 3] of each segment that has something below it: its first token, its end, and the end of what is below."""
        starts, parents = self.segments.starts, self.segments.parents
        ends = starts[1:].copy()
        for segment in range(len(parents) - 1, -1, -1):
            if parents[segment] >= 0:
                ends[parents[segment]] = max(ends[parents[segment]], ends[segment])
        inner = ends > starts[1:]
        return np.stack([starts[:-1][inner], starts[1:][inner], ends[inner]], axis=1)

    @cached_property
    def own(self) -> tuple[Call, ...]:
        """Causal blocks: each segment and itself."""
        starts = self.segments.starts
        return self._calls([(a, b, a, b) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)])

    @cached_property
    def above(self) -> tuple[Call, ...]:
        """Blocks that are seen whole: what lies below a segment, and the segment."""
        return self._calls([(middle, end, start, middle) for start, middle, end in self.branches.tolist()])

    @cached_property
    def varlen_own(self) -> VarlenCall:
        """`own` for a kernel that takes blocks of any length."""
        starts = self.segments.starts
        every, longest = slice(0, int(starts[-1])), int(np.diff(starts).max())
        bounds = on_device(starts.astype(np.int32), self.device)
        return VarlenCall((every, every, every), bounds, bounds, longest, longest, causal=True)

    @cached_property
    def varlen_above(self) -> tuple[VarlenCall, ...]:
        """`above` for such a kernel, a call for each depth: what lies below segments of one depth never overlaps."""
        open_until: list[int] = []
        depths = []
        for start, _, end in self.branches.tolist():
            while open_until and open_until[-1] <= start:
                open_until.pop()
            depths.append(len(open_until))
            open_until.append(end)
        calls = []
        for depth in range(max(depths, default=-1) + 1):
            blocks = self.branches[np.array(depths) == depth]
            keys, queries = blocks[:, :2], blocks[:, 1:]
            key_at, query_at = (on_device(_ranges(each), self.device) for each in (keys, queries))
            sizes = [each[:, 1] - each[:, 0] for each in (queries, keys)]
            query_starts, key_starts = (on_device(np.cumsum([0, *size], dtype=np.int32), self.device) for size in sizes)
            longest_query, longest_key = (int(size.max()) for size in sizes)
            places = (query_at, key_at, key_at)
            calls.append(VarlenCall(places, query_starts, key_starts, longest_query, longest_key, causal=False))
        return tuple(calls)

    def _calls(self, blocks: list[tuple[int, int, int, int]]) -> tuple[Call, ...]:
        alike: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for query, query_end, key, key_end in blocks:
            alike[query_end - query, key_end - key].append((query, key))
        return tuple(
            Call(
                len(places),
                self._where([query for query, _ in places], queries),
                queries,
                self._where([key for _, key in places], keys),
                keys,
            )
            for (queries, keys), places in alike.items()
        )

    def _where(self, firsts: list[int], size: int) -> Where:
        if firsts == list(range(firsts[0], firsts[0] + size * len(firsts), size)):
            return slice(firsts[0], firsts[0] + size * len(firsts))
        return on_device((np.array(firsts)[:, None] + np.arange(size)).ravel(), self.device)


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array as a tensor there; the host does not wait for a GPU."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _ranges(bounds: Index) -> Index:
    """All numbers of ranges [n, 2], one after the other."""
    return np.concatenate([np.arange(first, end) for first, end in bounds.tolist()])

"""Prefix tries of token sequences: what several of them begin with stands once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from learner.batching.packed import Index


@dataclass(frozen=True, slots=True)
class Trie:
    """T tokens in S segments, depth first: what lies below a segment follows it without a gap."""

    tokens: Index
    """[T]"""
    positions: Index
    """[T] distance from the root."""
    lengths: Index
    """[S] tokens of each segment, at least one."""
    parents: Index
    """[S] segment that it continues, -1 for a root."""
    places: tuple[Index, ...]
    """Of each sequence: where its tokens stand, [its length]."""


def lexicographic(sequences: Sequence[npt.NDArray[np.integer]]) -> list[int]:
    """The order in which neighbours have most in common, ties by index."""
    # Big-endian bytes compare as the tokens do.
    keys = [sequence.astype(">u4").tobytes() for sequence in sequences]
    return sorted(range(len(sequences)), key=lambda i: (keys[i], i))


def common_prefix(one: npt.NDArray[np.integer], other: npt.NDArray[np.integer]) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(one), len(other))
    differs = np.flatnonzero(one[:length] != other[:length])
    return int(differs[0]) if len(differs) else length


def build_trie(sequences: Sequence[npt.NDArray[np.integer]], common: Sequence[int]) -> Trie:
    """The trie of sequences in lexicographic order, none empty.

    common: of each, how many tokens it shares with the one before it; the first entry is not read.
    """
    places = tuple(np.empty(len(sequence), dtype=np.int64) for sequence in sequences)
    tokens: list[Index] = []
    positions: list[Index] = []
    parents: list[int] = []
    total = 0
    pending = [(0, len(sequences), 0, -1)]
    while pending:
        low, high, depth, parent = pending.pop()
        end = min((common[i] for i in range(low + 1, high)), default=len(sequences[low]))
        if end > depth:
            for i in range(low, high):
                places[i][depth:end] = np.arange(total, total + end - depth)
            tokens.append(sequences[low][depth:end].astype(np.int64))
            positions.append(np.arange(depth, end))
            parents.append(parent)
            parent, total = len(parents) - 1, total + end - depth
        cuts = [low, *(i for i in range(low + 1, high) if common[i] == end), high]
        for first, last in zip(cuts[-2::-1], cuts[:0:-1], strict=True):
            if len(sequences[last - 1]) > end:
                pending.append((first, last, end, parent))
    return Trie(
        tokens=np.concatenate(tokens),
        positions=np.concatenate(positions),
        lengths=np.array([len(part) for part in tokens], dtype=np.int64),
        parents=np.array(parents, dtype=np.int64),
        places=places,
    )

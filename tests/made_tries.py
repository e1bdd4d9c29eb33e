"""Tries of made-up sequences, for tests of attention."""

import itertools

import numpy as np
import torch

from learner.batching.packed import Segments
from learner.batching.trie import build_trie, common_prefix, lexicographic
from learner.model.attention.blocks import TrieBlocks


def blocks_of(lists: list[list[list[int]]]) -> TrieBlocks:
    """Several tries in one row."""
    lengths, parents, positions = [], [], []
    for each in lists:
        arrays = [np.array(sequence, dtype=np.int32) for sequence in each]
        ordered = [arrays[i] for i in lexicographic(arrays)]
        trie = build_trie(ordered, [0, *(common_prefix(a, b) for a, b in itertools.pairwise(ordered))])
        parents += [parent if parent < 0 else parent + len(lengths) for parent in trie.parents.tolist()]
        lengths += trie.lengths.tolist()
        positions += trie.positions.tolist()
    return TrieBlocks(Segments(np.cumsum([0, *lengths]), np.array(parents)), torch.tensor(positions))

"""Packed tokens as padded rows, which is how Hugging Face decoders take them."""

from dataclasses import dataclass

import numpy as np
import torch

from learner.batching.packed import PackedBatch

_NOBODY = -2


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """B rows of L tokens."""

    input_ids: torch.Tensor
    """[B, L] int64"""
    position_ids: torch.Tensor
    """[B, L] int64"""
    attention_mask: torch.Tensor | None
    """[B, 1, L, L] bool, True where the query (third axis) sees the key (fourth axis); None where all rows are plain causal."""
    places: torch.Tensor
    """[T] index into the flattened [B * L] of every packed token."""


def padded_rows(batch: PackedBatch, branching: bool) -> PaddedRows:
    """Pad the rows of a microbatch to the longest of them.

    branching: whether rows are tries, so that attention needs a mask; otherwise every row must hold one sample.
    """
    segments, device = batch.segments, batch.input_ids.device
    sizes = np.diff(segments.starts)
    row_of = np.repeat(segments.rows, sizes)
    lengths = np.bincount(row_of)
    count, length = len(lengths), int(lengths.max())
    places = row_of * length + np.arange(len(row_of)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    index = torch.from_numpy(places).to(device, non_blocking=True)
    input_ids = batch.input_ids.new_zeros(count * length)
    input_ids[index] = batch.input_ids
    # Plain rows count on through their padding: positions that restart would be read as packed sequences.
    position_ids = torch.arange(length, device=device).repeat(count)
    position_ids[index] = batch.positions
    mask = _attention_mask(batch, places, count, length).to(device, non_blocking=True) if branching else None
    return PaddedRows(input_ids.view(count, length), position_ids.view(count, length), mask, index)


def _attention_mask(batch: PackedBatch, places: np.ndarray, count: int, length: int) -> torch.Tensor:
    """Causal, along the path from the root of a token's trie. Padding sees the root, so that no row of the softmax is empty."""
    segments = batch.segments
    segment_of = np.repeat(np.arange(len(segments.parents)), np.diff(segments.starts))
    _, first_of_row = np.unique(segments.rows, return_index=True)
    keys = np.full(count * length, _NOBODY)
    keys[places] = segment_of
    queries = np.repeat(first_of_row, length)
    queries[places] = segment_of
    key = torch.from_numpy(keys.reshape(count, 1, length))
    mask = torch.zeros(count, length, length, dtype=torch.bool)
    while (queries >= 0).any():
        mask |= key == torch.from_numpy(queries.reshape(count, length, 1))
        queries = np.where(queries >= 0, segments.parents[queries], -1)
    return (mask & torch.ones(length, length, dtype=torch.bool).tril())[:, None]

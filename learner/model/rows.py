"""Packed samples as padded rows, for decoders whose layers do more than attend."""

from dataclasses import dataclass

import numpy as np
import torch

from learner.batching.packed import PackedBatch


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """B rows of L tokens."""

    input_ids: torch.Tensor
    """[B, L] int64"""
    position_ids: torch.Tensor
    """[B, L] int64"""
    places: torch.Tensor
    """[T] index into the flattened [B * L] of every packed token."""


def padded_rows(batch: PackedBatch) -> PaddedRows:
    """Pad the samples of a microbatch to the longest of them. Raises ValueError where samples share tokens."""
    segments, device = batch.segments, batch.input_ids.device
    if (segments.parents >= 0).any():
        raise ValueError("samples that share tokens cannot be rows of their own: pack them with share_prompt=False")
    lengths = np.diff(segments.starts)
    count, length = len(lengths), int(lengths.max())
    rows = np.repeat(np.arange(count), lengths)
    places = rows * length + np.arange(len(rows)) - segments.starts[rows]
    index = torch.from_numpy(places).to(device, non_blocking=True)
    input_ids = batch.input_ids.new_zeros(count * length)
    input_ids[index] = batch.input_ids
    # Rows count on through their padding: positions that restart would be read as packed sequences.
    position_ids = torch.arange(length, device=device).repeat(count)
    return PaddedRows(input_ids.view(count, length), position_ids.view(count, length), index)

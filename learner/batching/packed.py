"""Tokens as the learner computes on them: flat, without padding, as prefix tries."""

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segments:
    """How T tokens stand in prefix tries. A token's context is what comes before it on the path from its trie's root.

    S segments, in the order of their tokens, each trie depth first: what lies below a segment follows it without a gap. Stays
    on the host.
    """

    starts: Index
    """[S + 1] first token of each segment; the last entry is T."""
    parents: Index
    """[S] segment that it continues; -1 for a root."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """T input tokens of one microbatch, and the N tokens that the policy sampled and that are predicted from them.

    A sample lies in one microbatch whole. Log-probs in nats.
    """

    segments: Segments
    samples: int
    """How many samples there are; `sample` counts them from 0."""
    groups: int
    """How many groups there are; `group` counts them from 0."""
    members: Index
    """[samples] which each is among all samples of the groups that were packed, in their order. Stays on the host."""
    input_ids: torch.Tensor
    """[T] int64"""
    positions: torch.Tensor
    """[T] int64, place in its sample."""
    sources: torch.Tensor
    """[N] int64, index of the input token whose hidden state predicts the target."""
    targets: torch.Tensor
    """[N] int64, token ids."""
    sample: torch.Tensor
    """[N] int64"""
    group: torch.Tensor
    """[N] int64"""
    mask: torch.Tensor
    """[N] bool; False marks a token that only keeps ranks in step."""
    weights: torch.Tensor
    """[N] float32, the aggregation: sums over microbatches and ranks are the loss of the batch."""
    advantages: torch.Tensor
    """[N] float32"""
    rollout_logprobs: torch.Tensor
    """[N] float32, of the engine that sampled the token."""
    temperatures: torch.Tensor
    """[N] float32"""
    lag: torch.Tensor
    """[N] int64, policy versions between the one that sampled the token and the one that is trained."""
    old_logprobs: torch.Tensor | None = None
    """[N] float32, of the policy before the first update on the batch; None until computed."""
    reference_logprobs: torch.Tensor | None = None
    """[N] float32, of the reference policy; None where there is none."""
    mask_statistics: torch.Tensor | None = None
    """[masks, 3] float64, what each mask knows of the whole update; None where none asked."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its arrays by name, those that are there."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}

    def to(self, device: torch.device) -> "PackedBatch":
        """The same microbatch on `device`; on a GPU without waiting for it, from memory that stays where it is."""
        pinned = device.type == "cuda"
        moved = {
            name: (tensor.pin_memory() if pinned and tensor.device.type == "cpu" else tensor).to(
                device, non_blocking=True
            )
            for name, tensor in self.tensors().items()
        }
        return replace(self, **moved)  # type: ignore[arg-type]

"""What masks know of a whole update: gathered over microbatches and ranks before any of it is trained on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist

from learner.batching.packed import PackedBatch
from learner.masks.protocol import Mask


def with_statistics(plan: Sequence[PackedBatch], masks: Sequence[Mask]) -> list[PackedBatch]:
    """The microbatches of one update with the numbers that the masks ask for. Collective, where one of them asks.

    Log-probs are those of before the update; where they are not known (one update a batch) those of the sampler stand for them.
    """
    if not plan or not any(mask.of_the_update for mask in masks):
        return list(plan)
    tokens = over_all_ranks(torch.cat([_tokens(batch) for batch in plan])).numpy()
    rows = np.stack([mask.statistics(tokens[:, 0], tokens[:, 1]) for mask in masks])
    return [replace(batch, mask_statistics=torch.from_numpy(rows)) for batch in plan]


def _tokens(batch: PackedBatch) -> torch.Tensor:
    """[n, 2] float64 on the CPU: advantage and log-prob of the tokens inside the mask."""
    logprobs = batch.rollout_logprobs if batch.old_logprobs is None else batch.old_logprobs.cpu()
    return torch.stack([batch.advantages, logprobs], dim=1)[batch.mask].double()


def over_all_ranks(rows: torch.Tensor) -> torch.Tensor:
    """[sum of n, ...] the rows [n, ...] of every rank, of any number each. Collective."""
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    sizes[dist.get_rank()] = len(rows)
    dist.all_reduce(sizes)
    padded = rows.new_zeros((int(sizes.max()), *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes.tolist(), strict=True)])

"""Which groups go into which optimiser step and to which rank. Pure, deterministic; knows lengths but no tokens."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moments_service.messages.batch import Batch


def trained_tokens(batch: Batch) -> npt.NDArray[np.int64]:
    """[M] sampled tokens of each group that have an advantage; 0 means that there is nothing to train on."""
    return np.where(np.isnan(batch.advantages), 0, batch.table.lengths).sum(axis=1, dtype=np.int64)


def unique_tokens(batch: Batch, share_prompt: bool) -> npt.NDArray[np.int64]:
    """[M] tokens of each group that a learner computes: the prompt, once where it is shared, and all that follows it.

    Completions without an advantage count nothing. What completions share beyond the prompt is not known here.
    """
    used = ~np.isnan(batch.advantages) & (batch.table.lengths > 0)
    prompts = np.where(share_prompt, used.any(axis=1), used.sum(axis=1)) * batch.table.prompt_tokens
    follows = np.where(used, batch.table.lengths + batch.table.read, 0).sum(axis=1, dtype=np.int64)
    return prompts + follows


def masked_share(batch: Batch) -> float:
    """Share of the completions with an advantage that `without_truncated` leaves out."""
    return float(batch.table.truncated[~np.isnan(batch.advantages)].mean())


def without_truncated(batch: Batch) -> Batch:
    """A copy that has neither reward nor advantage of completions that a length limit ended: nothing is learned from those.

    Source: overlong filtering of DAPO (arXiv 2503.14476), section 3.4; `mask_truncated_completions` of TRL, which counts their zeros
    in the means of its loss. Here they count nowhere.
    """
    left_out = batch.table.truncated
    rewards = np.where(left_out, np.nan, batch.table.rewards)
    advantages = np.where(left_out, np.nan, batch.advantages)
    return replace(batch, table=replace(batch.table, rewards=rewards), advantages=advantages)


def split_evenly(count: int, parts: int) -> list[range]:
    """`parts` contiguous ranges that cover `range(count)`; sizes differ by one at most, the longer ones first."""
    size, longer = divmod(count, parts)
    starts = [i * size + min(i, longer) for i in range(parts + 1)]
    return [range(start, end) for start, end in itertools.pairwise(starts)]


def balance(tokens: Sequence[int], world_size: int) -> list[list[int]]:
    """Indices for each rank so that the ranks' token sums are close: longest first, to the emptiest rank.

    tokens: [n] cost of each item. Returns `world_size` lists of indices, each in ascending order. Ties go to the lower
    index and the lower rank, so that the split depends on nothing but the arguments. Source: Graham's LPT rule (1969).
    """
    loads = [0] * world_size
    ranks: list[list[int]] = [[] for _ in range(world_size)]
    for index in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        rank = min(range(world_size), key=lambda r: (loads[r], len(ranks[r]), r))
        loads[rank] += tokens[index]
        ranks[rank].append(index)
    return [sorted(indices) for indices in ranks]


def split_batch(batch: Batch, updates: int, world_size: int, share_prompt: bool = True) -> list[list[list[int]]]:
    """Rows of the batch by rank, then by optimiser step: `result[rank][update]`. Groups with nothing to train on are left out.

    share_prompt: whether the completions of a group compute its prompt once; ranks are given like numbers of tokens to compute.
    Every rank gets a list for every optimiser step, empty where there are fewer groups than ranks. Raises ValueError for a
    reward without an advantage.
    """
    unexplained = (np.isnan(batch.advantages) & ~np.isnan(batch.table.rewards)).any(axis=1)
    if unexplained.any():
        raise ValueError(f"group {batch.group_ids[int(unexplained.argmax())]}: a reward has no advantage")
    useful = np.flatnonzero(trained_tokens(batch)).tolist()
    costs = unique_tokens(batch, share_prompt).tolist()
    plan: list[list[list[int]]] = [[] for _ in range(world_size)]
    for part in split_evenly(len(useful), updates):
        chosen = [useful[i] for i in part]
        for rank, indices in enumerate(balance([costs[row] for row in chosen], world_size)):
            plan[rank].append([chosen[i] for i in indices])
    return plan

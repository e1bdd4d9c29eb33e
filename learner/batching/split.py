"""Which groups go into which optimiser step and to which rank. Pure, deterministic; knows lengths but no tokens."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moments_service.messages.groups import BlendedGroup


@dataclass(frozen=True, slots=True)
class Share:
    """One group on its way to a rank. `payload` is a `GroupPayload` or a Ray ObjectRef of one."""

    group_id: str
    payload: Any
    advantages: tuple[float | None, ...]


def trained_tokens(group: BlendedGroup) -> int:
    """Completion tokens of the group that have an advantage; 0 means that there is nothing to train on."""
    return sum(
        length for length, advantage in zip(group.group.lengths, group.advantages, strict=True) if advantage is not None
    )


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


def split_batch(groups: Sequence[BlendedGroup], updates: int, world_size: int) -> list[list[list[Share]]]:
    """Shares by rank, then by optimiser step: `result[rank][update]`. Groups without anything to train on are left out.

    Every rank gets a list for every optimiser step, empty where there are fewer groups than ranks.
    """
    useful = [group for group in groups if trained_tokens(group) > 0]
    plan: list[list[list[Share]]] = [[] for _ in range(world_size)]
    for part in split_evenly(len(useful), updates):
        chosen = [useful[i] for i in part]
        for rank, indices in enumerate(balance([trained_tokens(group) for group in chosen], world_size)):
            plan[rank].append(
                [Share(chosen[i].group.group_id, chosen[i].payload, chosen[i].advantages) for i in indices]
            )
    return plan

"""How many completions each of some groups gets, where a fixed number of them may be spread unevenly."""

import heapq

from moments_service.blend import Array

SMALLEST = 2
"""A single completion says nothing of the variance within its prompt, by which sizes are chosen: what was thought dull once
would never be looked at again. So not 1, not even for estimators that could use it."""


def group_sizes(variance: Array, completions: int, largest: int) -> list[int]:
    """Completions for each of M groups: as many as given in all, between 2 and `largest` each.

    variance: [M] >= 0, of the rewards within one prompt, as far as is known. The sizes G minimise sum of variance / G, the
    error of the groups' mean rewards: Neyman's allocation, G ~ sqrt(variance), in whole numbers. Each further completion
    goes where it takes away most, variance / (G (G + 1)); ties go to the earlier group. Groups worth nothing share evenly
    what others cannot take. Raises ValueError where the bounds cannot hold so many or need more.
    Source: Neyman (1934); in whole numbers, with these priorities, Wright, The American Statistician 66 (2012).
    """
    groups = len(variance)
    if not SMALLEST * groups <= completions <= largest * groups:
        raise ValueError(
            f"{completions} completions do not fit {groups} groups of {SMALLEST} to {largest}; "
            "group_size must lie between 2 and max_group_size"
        )
    floor = 1e-9 * float(variance.max(initial=0.0)) or 1.0
    worth = [max(float(value), floor) for value in variance]
    sizes = [SMALLEST] * groups
    queue = [(-worth[m] / (SMALLEST * (SMALLEST + 1)), m) for m in range(groups)] if largest > SMALLEST else []
    heapq.heapify(queue)
    for _ in range(completions - SMALLEST * groups):
        _, m = heapq.heappop(queue)
        sizes[m] += 1
        if sizes[m] < largest:
            heapq.heappush(queue, (-worth[m] / (sizes[m] * (sizes[m] + 1)), m))
    return sizes

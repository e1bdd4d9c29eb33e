"""What a policy can do, exactly: the probability of each prompt's gold answer instead of a count of samples."""

from typing import Any, Literal

import numpy as np

from benchmarks.league.policy import Policy
from benchmarks.league.sampling import pass_at, success_probabilities
from benchmarks.league.tasks import Split, Task

KS = (1, 2, 4, 8, 16)
WHOLE_LOOK = 1000
"""At the start and the end, so many training prompts are looked at, the same in every job."""
QUICK_LOOK = 120
"""In between, so many held-out prompts."""


class Measure:
    """pass@k of any policy on the prompts of a task."""

    def __init__(self, task: Task) -> None:
        self._splits: dict[str, Split] = {
            "train": some_of(task.train, WHOLE_LOOK),
            "held_out": task.held_out,
            "quick": some_of(task.held_out, QUICK_LOOK),
        }

    def whole(self, policy: Policy, side: Literal["train", "held_out"]) -> dict[str, Any]:
        """`pass_at`: pass@k by k; `sources`: pass@1 by source."""
        split = self._splits[side]
        found = success_probabilities(policy, split.tokens, split.answers)
        of = np.array([prompt.source for prompt in split.prompts])
        return {
            "pass_at": {str(k): round(pass_at(found, k), 5) for k in KS},
            "sources": {str(source): round(float(found[of == source].mean()), 5) for source in np.unique(of)},
        }

    def some(self, policy: Policy) -> float:
        """pass@1 on a few held-out prompts."""
        split = self._splits["quick"]
        return round(pass_at(success_probabilities(policy, split.tokens, split.answers), 1), 5)


def some_of(split: Split, count: int) -> Split:
    """At most so many of its prompts, evenly over it, so that every source keeps its share."""
    rows = np.unique(np.linspace(0, len(split.prompts) - 1, min(count, len(split.prompts))).round().astype(int))
    return Split(
        tuple(split.prompts[row] for row in rows),
        tuple(split.tokens[row] for row in rows),
        tuple(split.answers[row] for row in rows),
    )

"""How the groups of the batch committed last came out, prompt by prompt: what orders of prompts learn from."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.moments.base import CommittedRewards


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The M groups of a committed batch that have a reward, in folding order, those that were not trained on included.

    step: of the commit; whoever is told twice knows it by this.    successes, counts: [M] sum of a group's rewards, clipped
    to [0, 1], and their number.    uniform: [M] whether it has two rewards or more, and all of them are equal.
    """

    step: int
    prompts: tuple[str, ...]
    successes: Array
    counts: Array
    uniform: npt.NDArray[np.bool_]


def outcomes_of(step: int, committed: CommittedRewards) -> Outcomes:
    """What orders are told of the batch of `step`."""
    scored = np.flatnonzero((~np.isnan(committed.rewards)).any(axis=1))
    rewards = committed.rewards[scored]
    counts = (~np.isnan(rewards)).sum(axis=1).astype(np.float64)
    return Outcomes(
        step=step,
        prompts=tuple(committed.prompts[m] for m in scored.tolist()),
        successes=np.nansum(np.clip(rewards, 0.0, 1.0), axis=1),
        counts=counts,
        uniform=(counts > 1)
        & (np.nanmax(rewards, axis=1, initial=-np.inf) == np.nanmin(rewards, axis=1, initial=np.inf)),
    )

"""What the moments expect of groups that nobody has sampled yet: where will completions of one prompt differ?"""

from dataclasses import dataclass

import numpy as np

from moments_service.blend import Array
from moments_service.moments import History, Indices
from moments_service.moments.outcomes import Outcomes

HALF_RIGHT = 0.25
"""Variance of rewards 0 and 1 where every second one is 1: no prompt can promise more."""


@dataclass(frozen=True, slots=True)
class ExpectedSignal:
    """Expected reward variances, in square reward units, of N prompts in K clusters.

    clusters: [N] cluster of each prompt of the run, in the order in which the service got them.
    within: [K] among completions of one prompt.    total: [K] among all completions of the cluster.
    outcomes: how the groups of the last commit came out; None before the first one since the service started.
    """

    clusters: Indices
    within: Array
    total: Array
    outcomes: Outcomes | None = None


def expected_signal(history: History, clusters: Indices, outcomes: Outcomes | None = None) -> ExpectedSignal:
    """What to expect by the moments of all K clusters. clusters: [N].    outcomes: to be told along.

    `within` is the posterior mean that the moments keep: for one prompt p (1 - p), over the cluster E[p (1 - p)], which is
    half the chance that two completions of one prompt get different binary rewards. A cluster that nobody has seen promises
    as much as any can, so that it is looked at first (optimism in the face of uncertainty); where history fades under a
    prior, a cluster that is left alone drifts back towards that prior.
    """

    def hopeful(variance: Array) -> Array:
        best = max(HALF_RIGHT, float(variance[history.seen].max(initial=0.0)))
        return np.where(history.seen, variance, best)

    return ExpectedSignal(clusters, hopeful(history.within), hopeful(history.variance), outcomes)

"""What is expected of a cluster's mean from all the others: their mean, and more from those whose prompts are alike."""

import numpy as np

from moments_service.blend import Array

PRIOR_CLUSTERS = 2.0
"""Clusters' worth of the guess that clusters differ as much as the prompts of one do."""
PRIOR_PAIRS = 2.0
"""Pairs' worth, of clusters that are the same, of the guess that likeness of prompts says nothing of their rewards."""
MOST = 256
"""Clusters beyond which nobody looks for neighbours: it costs their number cubed."""


def expected_of_others(level: Array, precision: Array, between: float, kinship: Array | None) -> tuple[Array, Array]:
    """Mean and variance of the prediction of each cluster's true mean from the other known ones. All [K].

    level, precision: of the clusters by themselves, precision 0 where nothing is known.    between: variance of prompts within
    clusters, what the variance between clusters is shrunk to.    kinship: [K, K] likeness in [0, 1] with 1 on the diagonal,
    positive definite; None: all alike. Clusters' means are taken for a Gaussian process with covariance
    spread * (a kinship + (1 - a) identity); `a`, how much likeness says, is estimated from products of pairs, so that where it says
    nothing each cluster is expected to be like the average one. Both are 0 where no cluster is known.
    Source: best linear unbiased prediction (Goldberger 1962); DerSimonian and Laird (1986) for the spread.
    """
    known = np.flatnonzero(precision > 0)
    if not len(known):
        return np.zeros_like(level), np.zeros_like(level)
    centre, spread = _average(level[known], precision[known], between)
    mean, variance = np.full(len(level), centre), np.full(len(level), spread)
    if kinship is None or not 1 < len(known) <= MOST or len(kinship) != len(level) or spread <= 0:
        return mean, variance
    noise, deviation = 1.0 / precision[known], level[known] - centre
    says = _said_by_likeness(deviation, noise, spread, kinship[np.ix_(known, known)])
    if says <= 0:
        return mean, variance
    covariance = spread * says * kinship[:, known]
    covariance[known, np.arange(len(known))] += spread * (1.0 - says)
    solved = np.linalg.solve(covariance[known] + np.diag(noise), np.column_stack([deviation, covariance.T]))
    after, left = centre + covariance @ solved[:, 0], spread - np.einsum("kn,nk->k", covariance, solved[:, 1:])
    left = np.maximum(left, 1e-12 * spread)
    # What the cluster says of itself is taken out again.
    others = np.maximum(1.0 / left - precision, 1e-12 / spread)
    return centre + ((after - centre) / left - precision * (level - centre)) / others, np.minimum(1.0 / others, spread)


def _average(level: Array, precision: Array, between: float) -> tuple[float, float]:
    """Mean of the clusters' true means, and their variance."""
    number, origin, noise = len(level), level.mean(), 1.0 / precision
    centred = level - origin
    excess = max(float((centred**2).sum() / max(number - 1, 1) - noise.mean()), 0.0)
    spread = ((number - 1) * excess + PRIOR_CLUSTERS * between) / (number - 1 + PRIOR_CLUSTERS)
    weights = 1.0 / (spread + noise)
    return float(origin + (weights * centred).sum() / weights.sum()), spread


def _said_by_likeness(deviation: Array, noise: Array, spread: float, kinship: Array) -> float:
    """Share of the spread that goes with kinship, in [0, 1]: E[d_i d_j] = share * spread * kinship_ij of two clusters."""
    trust = spread / (spread + noise)
    standard = trust * deviation / spread**0.5
    pairs = kinship - np.diag(np.diag(kinship))
    found = float(standard @ pairs @ standard)
    possible = float(trust @ pairs**2 @ trust)
    return min(max(found / (possible + PRIOR_PAIRS), 0.0), 1.0)

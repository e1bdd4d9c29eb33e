"""How much of a perfect baseline's signal a batch's advantages hold, from its rewards and what was expected of them alone.

The effective signal (`offline/efficiency.py`) is (E[A (r - p)])^2 / (E[A^2] E[(r - p)^2]) with p a prompt's true mean, which nobody
knows. But A is made of the group's rewards and of what was known before, so that E[A (r - p)] = E[A (r - E[p | all of that])]: what
stands in for p is the mean that is to be expected after the group,

    p_hat = m + B (group's mean - m),    B = V / (V + v / n),

with m what was expected of the prompt before, V its mean squared error, v the variance of one prompt's rewards, and n rewards in
the group. An estimator that says what it expects is taken at its word; else m is the mean of the cluster's history, and V what that
missed the other groups of the batch by, beyond their sampling error. This is exact where chances are Beta distributed or rewards Gaussian, and for any distribution where
A is linear in the group's mean. Where a group's advantages sum to 0 (grpo, rloo) p_hat drops out.

How it errs. Where the advantage knows more of the prompt than m does, it is too low; so it is under `paper` moments, whose v is the
whole variance. Of groups of one, which cannot tell V from v, it is too high: it takes the prompts of a cluster for alike. One batch scatters: averages over steps are what to read, and single values may leave [0, 1].
"""

from dataclasses import replace

import numpy as np

from moments_service.blend import Array, group_moments
from moments_service.moments import History
from moments_service.moments.leave_one_out import Priors


def effective_signal(values: Array, rewards: Array, history: History, prior: Priors | None = None) -> float:
    """Share of a perfect baseline's signal to noise in the advantages of a batch.

    values, rewards: [M, G], NaN where there is none.    history: before the batch, [M] rows.    prior: what the run's estimator
    expected of the prompts, if it says so. The square of a batch's mean has the mean's own variance in it; the jackknife over
    groups takes that out. Returns 0 for advantages that are all 0.
    """
    known = ~np.isnan(values) & ~np.isnan(rewards)
    expected = _of_history(history, rewards) if prior is None else prior
    if known.sum(axis=1).max() < 2:
        nothing = np.zeros_like(expected.between)
        both = history.variance if prior is None else expected.within + expected.variance
        expected = replace(expected, within=both, between=nothing, level_variance=nothing)
    luck = _luck(rewards, expected)
    advantages = np.where(known, values, 0.0)
    aligned = (advantages * np.where(known, luck, 0.0)).sum(axis=1)
    variance = _within(rewards, expected)
    parts = aligned, (advantages**2).sum(axis=1), variance * known.sum(axis=1)
    whole = [part.sum() for part in parts]
    ratio = float(_ratio(*whole))
    groups = len(aligned)
    if groups < 2:
        return ratio
    without = _ratio(*(total - part for total, part in zip(whole, parts, strict=True)))
    return groups * ratio - (groups - 1) * float(without.mean())


def _ratio(aligned: Array, squares: Array, variance: Array) -> Array:
    """aligned^2 / (squares variance), 0 where there is nothing."""
    both = squares * variance
    some = both > 0
    return np.asarray(np.where(some, aligned**2 / np.where(some, both, 1.0), 0.0))


def _of_history(history: History, rewards: Array) -> Priors:
    """What the history of a group's cluster lets expect of its prompt, as wrong as it was of the other groups of the batch."""
    mean, _, count = group_moments(rewards)
    usable = history.seen & (count > 0)
    missed = np.where(usable, (mean - history.mean) ** 2 - history.within / np.maximum(count, 1.0), 0.0)
    others = np.maximum(usable.sum() - usable, 1)
    error = np.maximum((missed.sum() - missed) / others, 0.0)
    return Priors(history.mean, np.zeros_like(error), error, history.within, history.seen)


def _luck(rewards: Array, expected: Priors) -> Array:
    """[M, G] rewards less p_hat."""
    mean, _, count = group_moments(rewards)
    sampling = expected.within / np.maximum(count, 1.0)
    both = expected.variance + sampling
    # Where nothing is known beforehand only the group itself tells.
    shrinkage = np.where(expected.known & (both > 0), expected.variance / np.where(both > 0, both, 1.0), 1.0)
    return np.asarray(rewards - mean[:, None] + ((1.0 - shrinkage) * (mean - expected.mean))[:, None])


def _within(rewards: Array, expected: Priors) -> float:
    """Variance within a prompt, mean over the completions: as expected; the batch's own where nothing was."""
    _, variance, count = group_moments(rewards)
    freedom = np.maximum(count - 1.0, 0.0).sum()
    own = float((variance * count).sum() / freedom) if freedom > 0 else 0.0
    return max(float((count * np.where(expected.known, expected.within, own)).sum() / max(count.sum(), 1.0)), 0.0)

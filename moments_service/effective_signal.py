"""How much of a perfect baseline's signal a batch's advantages hold, from its rewards and history alone.

The effective signal (`offline/efficiency.py`) is (E[A (r - p)])^2 / (E[A^2] E[(r - p)^2]) with p a prompt's true mean, which nobody
knows. But A is made of the group's rewards and of things that are independent of their luck, so that
E[A (r - p)] = E[A (r - E[p | the group's rewards])]: what stands in for p is the mean that is to be expected after the group,

    p_hat = mu + B (group's mean - mu),    B = tau^2 / (tau^2 + v / n),

with the mean mu of its cluster's history, the variance tau^2 between prompts and v within, and n rewards in the group. This is
exact where chances are Beta distributed or rewards Gaussian, and for any distribution where A is linear in the group's mean.
Where a group's advantages sum to 0 (grpo, rloo) p_hat drops out.

How it errs. Where the advantage knows more of the prompt than its group and cluster (its own past), it is too low. History with
tau^2 too small, as after few groups, or in `paper` moments, which have none, makes it too high; and so does a batch of groups of one,
which cannot tell v from tau^2: it takes the prompts of a cluster for alike. One batch scatters: averages over steps are what to
read, and single values may leave [0, 1].
"""

from dataclasses import replace

import numpy as np

from moments_service.blend import Array, group_moments
from moments_service.moments import History


def effective_signal(values: Array, rewards: Array, history: History) -> float:
    """Share of a perfect baseline's signal to noise in the advantages of a batch.

    values, rewards: [M, G], NaN where there is none.    history: before the batch, [M] rows.
    The square of a batch's mean has the mean's own variance in it; the jackknife over groups takes that out.
    Returns 0 for advantages that are all 0.
    """
    known = ~np.isnan(values) & ~np.isnan(rewards)
    if known.sum(axis=1).max() < 2:
        history = replace(history, within=history.variance, between=np.zeros_like(history.between))
    advantages = np.where(known, values, 0.0)
    variance = max(_within(rewards, history), 0.0)
    aligned = (advantages * np.where(known, _luck(rewards, history), 0.0)).sum(axis=1)
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


def _luck(rewards: Array, history: History) -> Array:
    """[M, G] rewards less p_hat, less the mean of that over the other groups: where history lags, all have the same luck."""
    mean, _, count = group_moments(rewards)
    sampling = history.within / np.maximum(count, 1.0)
    both = history.between + sampling
    # Of a cluster that nobody has seen only the group itself tells.
    shrinkage = np.where(history.seen & (both > 0), history.between / np.where(both > 0, both, 1.0), 1.0)
    luck = rewards - mean[:, None] + ((1.0 - shrinkage) * (mean - history.mean))[:, None]
    clean, sizes = np.nansum(luck, axis=1), (~np.isnan(luck)).sum(axis=1)
    others = np.maximum(sizes.sum() - sizes, 1)
    return np.asarray(luck - ((clean.sum() - clean) / others)[:, None])


def _within(rewards: Array, history: History) -> float:
    """Variance within a prompt, mean over the completions: history's; of clusters that nobody has seen the batch's own."""
    _, variance, count = group_moments(rewards)
    freedom = np.maximum(count - 1.0, 0.0).sum()
    own = float((variance * count).sum() / freedom) if freedom > 0 else 0.0
    return float((count * np.where(history.seen, history.within, own)).sum() / max(count.sum(), 1.0))

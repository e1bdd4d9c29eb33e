"""Proper sufficient statistics that fade with age: the moments of the safe variant."""

import numpy as np

from moments_service.blend import Array
from moments_service.moments.base import (
    ClusterMoments,
    CommittedRewards,
    History,
    Indices,
    NamedArrays,
    cluster_sums,
    origin_of,
)

_SUMS = ("count", "total", "squares", "groups", "group_means", "squared_group_means", "within", "inverse_sizes")


class DecayedCounts(NamedArrays):
    """Sums over a cluster's rewards; each policy version leaves `retention` of them, under a pseudo-count prior.

    With `kl_half_life`, history also halves whenever the policy has moved by so much KL since. Fading is worked out when
    a cluster is read or written, so that a batch costs the same however many clusters there are.

    The prior stands for `prior[0]` rewards of 1 and `prior[1]` rewards of 0, so that a cluster which was never solved
    keeps a variance above zero. For binary rewards the variance is exactly mean * (1 - mean).

    Sums are kept, and the prior is meant, about an origin that is 0 unless the first rewards lie far from it.

    The mass is Kish's effective sample size, n^2 / sum of squared weights, when the cluster was last touched; it fades
    from there like the counts, since rewards of a policy long gone say less about this one.
    """

    def __init__(
        self, clusters: int, retention: float, prior: tuple[float, float], kl_half_life: float | None = None
    ) -> None:
        number = np.dtype(np.float64)
        rows = dict.fromkeys((*_SUMS, "squared_weights", "kl"), number) | {"version": np.dtype(np.int64)}
        scalars = {
            "policy_version": np.full((), -1, dtype=np.int64),
            "policy_kl": np.zeros(()),
            "origin": np.zeros(()),
        }
        super().__init__(clusters, rows, scalars)
        self.retention = retention
        self.prior = prior
        self.kl_half_life = kl_half_life

    def history(self, clusters: Indices) -> History:
        fade = self._fade(clusters)
        sums = {name: fade * self._arrays[name][clusters] for name in _SUMS}
        ones, zeros = self.prior
        pseudo_count = sums["count"] + ones + zeros
        # Without a prior an unseen cluster divides 0 by 0; its row is not used, `seen` says so.
        safe_count = np.where(pseudo_count > 0, pseudo_count, 1.0)
        mean = (sums["total"] + ones) / safe_count
        second = (sums["squares"] + ones) / safe_count
        squared_weights = self._arrays["squared_weights"][clusters]
        seen = squared_weights > 0
        kish = self._arrays["count"][clusters] ** 2 / np.where(seen, squared_weights, 1.0)
        within = self._within(sums)
        return History(
            mean=mean + self._arrays["origin"],
            variance=np.maximum(second - mean**2, 0.0),
            mass=np.where(seen, fade * kish, 0.0),
            seen=seen,
            within=within,
            between=_between(sums, within),
        )

    def fold(self, committed: CommittedRewards) -> None:
        arrays = self._arrays
        arrays["policy_version"][...] = max(committed.policy_version, int(arrays["policy_version"]))
        if committed.move is not None:
            arrays["policy_kl"][...] += committed.move.kl
        if not arrays["count"].any():
            arrays["origin"][...] = origin_of(committed.rewards)
        sums = cluster_sums(committed.clusters, committed.rewards - arrays["origin"])
        touched = sums.clusters
        self._age(touched, squared_weights_by=2)
        for name in _SUMS:
            arrays[name][touched] += getattr(sums, name)
        arrays["squared_weights"][touched] += sums.count

    def transfer(self, source: int, target: int, share: float) -> None:
        self._age(np.array([source, target]))
        for name in (*_SUMS, "squared_weights"):
            array = self._arrays[name]
            given = share * array[source]
            array[source] -= given
            array[target] += given

    def carry_over(self, share: float) -> None:
        # Kish's n^2 / q scales like n if both do.
        every = np.arange(len(self))
        self._age(every)
        for name in (*_SUMS, "squared_weights"):
            self._arrays[name] *= share
        for name in ("version", "kl", "policy_version", "policy_kl"):
            self._arrays[name][...] = 0

    def absorb(self, other: ClusterMoments) -> None:
        self.refuse_other(other)
        arrays = other.state()
        if arrays["count"].any():
            self.share_origin(arrays["origin"], empty=not self._arrays["count"].any())
        for name in (*_SUMS, "squared_weights"):
            self._arrays[name] += arrays[name]

    def _fade(self, clusters: Indices) -> Array:
        """What age leaves of each cluster's sums, in (0, 1]."""
        gap = self._arrays["policy_version"] - self._arrays["version"][clusters]
        fade = self.retention ** gap.astype(np.float64)
        if self.kl_half_life is not None:
            fade *= 0.5 ** ((self._arrays["policy_kl"] - self._arrays["kl"][clusters]) / self.kl_half_life)
        return fade

    def _age(self, clusters: Indices, squared_weights_by: int = 1) -> None:
        """Apply the fading of these clusters and set their clocks to now.

        squared_weights_by: their power of the fading. 2 where new rewards of weight 1 come beside the faded ones; 1 where none
        do, which leaves the mass n^2 / q what it had faded to: all weights being equally small is no reason to trust them.
        """
        fade = self._fade(clusters)
        for name in _SUMS:
            self._arrays[name][clusters] *= fade
        self._arrays["squared_weights"][clusters] *= fade**squared_weights_by
        self._arrays["version"][clusters] = self._arrays["policy_version"]
        self._arrays["kl"][clusters] = self._arrays["policy_kl"]

    def _within(self, sums: dict[str, Array]) -> Array:
        """Pooled variance inside groups, under as many pseudo-degrees of freedom as the prior has counts."""
        ones, zeros = self.prior
        strength = ones + zeros
        # E[p (1 - p)] under Beta(ones, zeros).
        expected = ones * zeros / (strength * (strength + 1.0)) if strength > 0 else 0.0
        freedom = np.maximum(sums["count"] - sums["groups"], 0.0) + strength
        return (sums["within"] + strength * expected) / np.where(freedom > 0, freedom, 1.0)


def _between(sums: dict[str, Array], within: Array) -> Array:
    """tau^2 = max(variance of group means - what sampling inside the groups explains of it, 0)."""
    groups = np.where(sums["groups"] > 0, sums["groups"], 1.0)
    variance = np.maximum(sums["squared_group_means"] / groups - (sums["group_means"] / groups) ** 2, 0.0)
    return np.maximum(variance - within * sums["inverse_sizes"] / groups, 0.0)

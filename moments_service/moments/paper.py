"""The moments of the BV-Blend paper, to the letter."""

import numpy as np

from moments_service.moments.base import (
    ClusterMoments,
    CommittedRewards,
    History,
    Indices,
    NamedArrays,
    cluster_sums,
    origin_of,
)


class PaperMoments(NamedArrays):
    """EMA of the first two raw moments and of the mass. Source: BV-Blend (arXiv 2606.28707), Eq. 6 and 12.

    At first sight a cluster takes the batch's mean and the prior variance; the batch's own spread is not used.
    Moments are kept about an origin that is 0 unless the first rewards lie far from it. Clusters that a batch does not touch do not change. The paper tells no variances within and between prompts apart:
    `within` is the whole variance and `between` is 0.
    """

    def __init__(self, clusters: int, update_rate: float, initial_mass: float, initial_variance: float) -> None:
        number, flag = np.dtype(np.float64), np.dtype(np.bool_)
        super().__init__(
            clusters, {"mean": number, "second_moment": number, "mass": number, "seen": flag}, {"origin": np.zeros(())}
        )
        self.update_rate = update_rate
        self.initial_mass = initial_mass
        self.initial_variance = initial_variance

    def history(self, clusters: Indices) -> History:
        rows = {name: array[clusters] for name, array in self._arrays.items() if array.ndim}
        variance = np.maximum(rows["second_moment"] - rows["mean"] ** 2, 0.0)
        return History(
            mean=rows["mean"] + self._arrays["origin"],
            variance=variance,
            mass=rows["mass"],
            seen=rows["seen"],
            within=variance,
            between=np.zeros_like(variance),
        )

    def fold(self, committed: CommittedRewards) -> None:
        if not self._arrays["seen"].any():
            self._arrays["origin"][...] = origin_of(committed.rewards)
        sums = cluster_sums(committed.clusters, committed.rewards - self._arrays["origin"])
        mean, second, mass, seen = (self._arrays[name] for name in ("mean", "second_moment", "mass", "seen"))
        touched = sums.clusters
        batch_mean = sums.total / sums.count
        batch_second = sums.squares / sums.count
        old = seen[touched]
        keep, rate = 1.0 - self.update_rate, self.update_rate
        first_second = batch_mean**2 + self.initial_variance
        mean[touched] = np.where(old, keep * mean[touched] + rate * batch_mean, batch_mean)
        second[touched] = np.where(old, keep * second[touched] + rate * batch_second, first_second)
        mass[touched] = np.where(old, keep * mass[touched] + rate * sums.count, self.initial_mass)
        seen[touched] = True

    def transfer(self, source: int, target: int, share: float) -> None:
        """An EMA has no counts to divide: the moved moments are weighed by mass, and mass is what adds up."""
        mean, second, mass, seen = (self._arrays[name] for name in ("mean", "second_moment", "mass", "seen"))
        if not seen[source]:
            return
        given = share * mass[source]
        old = mass[target] if seen[target] else 0.0
        for moment in (mean, second):
            moment[target] = (old * moment[target] + given * moment[source]) / (old + given)
        mass[target] = old + given
        seen[target] = True
        mass[source] -= given
        seen[source] = mass[source] > 0

    def carry_over(self, share: float) -> None:
        """An EMA has no clock; only its mass shrinks."""
        self._arrays["mass"] *= share

    def absorb(self, other: ClusterMoments) -> None:
        """Moments weighed by mass, as in `transfer`."""
        self.refuse_other(other)
        theirs = other.state()
        seen = theirs["seen"]
        if seen.any():
            self.share_origin(theirs["origin"], empty=not self._arrays["seen"].any())
        given = np.where(seen, theirs["mass"], 0.0)
        old = np.where(self._arrays["seen"], self._arrays["mass"], 0.0)
        total = np.where(seen, old + given, 1.0)
        for name in ("mean", "second_moment"):
            blended = (old * self._arrays[name] + given * theirs[name]) / total
            self._arrays[name] = np.where(seen, blended, self._arrays[name])
        self._arrays["mass"] = np.where(seen, total, self._arrays["mass"])
        self._arrays["seen"] = self._arrays["seen"] | seen

"""Reward moments of every semantic cluster: two ways to remember, one interface.

Whoever owns the moments folds each batch in exactly once, after the policy step; nothing here locks or checks that.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.config import BlendConfig

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class History:
    """What is remembered of some clusters. All arrays [M], one row per group asked for.

    mean, variance: of the cluster's rewards, in reward units and their square.
    mass: effective number of rewards behind them.    seen: False where nothing was ever folded in.
    """

    mean: Array
    variance: Array
    mass: Array
    seen: npt.NDArray[np.bool_]


class ClusterMoments(Protocol):
    """Remembered rewards of K clusters."""

    def history(self, clusters: Indices) -> History:
        """The moments of the given clusters ([M] indices), before anything of the current batch."""
        ...

    def fold(self, clusters: Indices, rewards: Array, policy_version: int) -> None:
        """Take one batch in. clusters: [M]. rewards: [M, G] raw verifier rewards, NaN where there is none."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to go on from here, as named arrays."""
        ...

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on from `state`. Raises ValueError if it is of another kind or number of clusters."""
        ...


def create_moments(config: BlendConfig, clusters: int) -> ClusterMoments:
    """Empty moments of the kind that the blend variant asks for."""
    if config.variant == "paper":
        return PaperMoments(clusters, config.update_rate, config.initial_mass, config.initial_variance)
    return DecayedCounts(clusters, config.retention, config.prior)


class _Buffers:
    """Named dense arrays of one length that save and load together."""

    _arrays: dict[str, np.ndarray]

    def state(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._arrays.items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        expected = {name: array.shape for name, array in self._arrays.items()}
        found = {name: np.shape(array) for name, array in state.items()}
        if expected != found:
            raise ValueError(
                f"saved moments do not fit this run: saved {found}, expected {expected}; "
                "keep moments.blend.variant and the codebook of the run they come from"
            )
        for name, array in self._arrays.items():
            array[...] = state[name]


class PaperMoments(_Buffers):
    """EMA of the first two raw moments and of the mass. Source: BV-Blend (arXiv 2606.28707), Eq. 6 and 12.

    At first sight a cluster takes the batch's mean and the prior variance; the batch's own spread is not used.
    Clusters that a batch does not touch do not change.
    """

    def __init__(self, clusters: int, update_rate: float, initial_mass: float, initial_variance: float) -> None:
        self.update_rate = update_rate
        self.initial_mass = initial_mass
        self.initial_variance = initial_variance
        self._arrays = {
            "mean": np.zeros(clusters),
            "second_moment": np.zeros(clusters),
            "mass": np.zeros(clusters),
            "seen": np.zeros(clusters, dtype=bool),
        }

    def history(self, clusters: Indices) -> History:
        rows = {name: array[clusters] for name, array in self._arrays.items()}
        variance = np.maximum(rows["second_moment"] - rows["mean"] ** 2, 0.0)
        return History(mean=rows["mean"], variance=variance, mass=rows["mass"], seen=rows["seen"])

    def fold(self, clusters: Indices, rewards: Array, policy_version: int) -> None:
        mean, second, mass, seen = (self._arrays[name] for name in ("mean", "second_moment", "mass", "seen"))
        count, total, squares = cluster_sums(clusters, rewards, len(mean))
        touched = count > 0
        batch_mean = total[touched] / count[touched]
        batch_second = squares[touched] / count[touched]
        old = seen[touched]
        keep, rate = 1.0 - self.update_rate, self.update_rate
        mean_before, second_before, mass_before = mean[touched], second[touched], mass[touched]
        mean[touched] = np.where(old, keep * mean_before + rate * batch_mean, batch_mean)
        second[touched] = np.where(
            old, keep * second_before + rate * batch_second, batch_mean**2 + self.initial_variance
        )
        mass[touched] = np.where(old, keep * mass_before + rate * count[touched], self.initial_mass)
        seen[touched] = True


class DecayedCounts(_Buffers):
    """Proper sufficient statistics that fade with every policy version, under a pseudo-count prior.

    The prior stands for `prior[0]` rewards of 1 and `prior[1]` rewards of 0, so that a cluster which was never solved
    keeps a variance above zero. For binary rewards the variance is exactly mean * (1 - mean).
    The mass is Kish's effective sample size, n^2 / sum of squared weights.
    """

    def __init__(self, clusters: int, retention: float, prior: tuple[float, float]) -> None:
        self.retention = retention
        self.prior = prior
        self._arrays = {
            "count": np.zeros(clusters),
            "total": np.zeros(clusters),
            "squares": np.zeros(clusters),
            "squared_weights": np.zeros(clusters),
            "policy_version": np.full((), -1, dtype=np.int64),
        }

    def history(self, clusters: Indices) -> History:
        count = self._arrays["count"][clusters]
        ones, zeros = self.prior
        pseudo_count = count + ones + zeros
        # Without a prior an unseen cluster divides 0 by 0; its row is not used, `seen` says so.
        safe_count = np.where(pseudo_count > 0, pseudo_count, 1.0)
        mean = (self._arrays["total"][clusters] + ones) / safe_count
        second = (self._arrays["squares"][clusters] + ones) / safe_count
        squared_weights = self._arrays["squared_weights"][clusters]
        seen = squared_weights > 0
        mass = np.where(seen, count**2 / np.where(seen, squared_weights, 1.0), 0.0)
        return History(mean=mean, variance=np.maximum(second - mean**2, 0.0), mass=mass, seen=seen)

    def fold(self, clusters: Indices, rewards: Array, policy_version: int) -> None:
        arrays = self._arrays
        before = int(arrays["policy_version"])
        elapsed = max(policy_version - before, 0) if before >= 0 else 0
        count, total, squares = cluster_sums(clusters, rewards, len(arrays["count"]))
        fade = self.retention**elapsed
        arrays["count"][...] = fade * arrays["count"] + count
        arrays["total"][...] = fade * arrays["total"] + total
        arrays["squares"][...] = fade * arrays["squares"] + squares
        arrays["squared_weights"][...] = fade**2 * arrays["squared_weights"] + count
        arrays["policy_version"][...] = max(policy_version, before)


def cluster_sums(clusters: Indices, rewards: Array, number: int) -> tuple[Array, Array, Array]:
    """Count, sum and sum of squares of the rewards in each cluster. Returns three [K] arrays."""
    valid = ~np.isnan(rewards)
    clean = np.where(valid, rewards, 0.0)

    def per_cluster(values: Array) -> Array:
        return np.bincount(clusters, weights=values, minlength=number).astype(np.float64)

    return per_cluster(valid.sum(axis=1)), per_cluster(clean.sum(axis=1)), per_cluster((clean**2).sum(axis=1))

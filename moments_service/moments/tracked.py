"""Tracked means: where each cluster's mean reward stands now, how sure that is, and how far single prompts lie from it."""

import numpy as np

from moments_service.blend import Array
from moments_service.moments.base import ClusterMoments, CommittedRewards, Indices, NamedArrays
from moments_service.moments.group_means import group_means
from moments_service.moments.leave_one_out import TrackedHistory, leave_one_out, shrunk
from moments_service.moments.regions import expected_of_others

RETENTION = 0.9
"""What one policy version leaves of the sums that variances are estimated from."""
DRIFT_RETENTION = 0.97
"""What one batch leaves of what earlier ones said of the drift."""

_SUMS = ("squares", "freedom", "misses", "groups")


class TrackedMeans(NamedArrays):
    """A Kalman filter for the mean reward of each cluster, and decayed variance components.

    The mean is a random walk: a policy version adds `drift` times the cluster's variance to the variance of what is known of
    it. The drift is estimated from how far batches fall from their prediction, so history is forgotten as fast as the policy
    moves, and no faster. A cluster's groups observe its mean with variance V + v / n each: V between its prompts, v within one,
    n rewards a group. V is not fitted but scored: by how much predictions of groups, made before they were seen, missed their
    true means. Whatever is wrong with predictions, their lag included, counts.
    Source: Kalman (1960); METHODS G.1.
    """

    def __init__(self, clusters: int) -> None:
        number = np.dtype(np.float64)
        rows = dict.fromkeys(("level", "precision", *_SUMS), number) | {"version": np.dtype(np.int64)}
        scalars = {
            "policy_version": np.full((), -1, dtype=np.int64),
            "drift_sum": np.zeros(()),
            "drift_weight": np.zeros(()),
            "lowest": np.full((), np.inf),
            "highest": np.full((), -np.inf),
        }
        super().__init__(clusters, rows, scalars)
        self.kinship: Array | None = None

    def relate(self, kinship: Array | None) -> None:
        """From now on, how alike the prompts of the clusters are. kinship: [K, K], see `expected_of_others`; None: nobody knows."""
        self.kinship = kinship

    @property
    def drift(self) -> float:
        """What one policy version adds to what is unknown of a cluster's mean, in units of the variance of its rewards."""
        weight = float(self._arrays["drift_weight"])
        return max(float(self._arrays["drift_sum"]) / weight, 0.0) if weight > 0 else 0.0

    def history(self, clusters: Indices) -> TrackedHistory:
        arrays = self._arrays
        age = (arrays["policy_version"] - arrays["version"]).astype(np.float64)
        sums = {name: RETENTION**age * arrays[name] for name in _SUMS}
        pooled = {name: float(values.sum()) for name, values in sums.items()}
        between_pooled = max(pooled["misses"] / pooled["groups"], 0.0) if pooled["groups"] > 0 else 0.0
        within_pooled = pooled["squares"] / pooled["freedom"] if pooled["freedom"] > 0 else 0.0
        within = shrunk(sums["squares"], sums["freedom"], within_pooled)
        between = np.maximum(shrunk(sums["misses"], sums["groups"], between_pooled), 0.0)
        precision = _drifted(arrays["precision"], self.drift * age * (within + between))
        centre, spread = expected_of_others(arrays["level"], precision, between_pooled, self.kinship)
        known = spread * precision
        seen = precision > 0
        rows = {
            "mean": np.where(seen, centre + known / (1.0 + known) * (arrays["level"] - centre), 0.0),
            "variance": within + between, "mass": sums["freedom"] + sums["groups"], "seen": seen, "within": within,
            "between": between, "level": arrays["level"], "precision": precision, "centre": centre, "spread": spread, **sums,
        }  # fmt: skip
        return TrackedHistory(
            **{name: values[clusters] for name, values in rows.items()},
            pooled=pooled,
            lowest=float(arrays["lowest"]),
            highest=float(arrays["highest"]),
        )

    def fold(self, committed: CommittedRewards) -> None:
        arrays = self._arrays
        arrays["policy_version"][...] = max(committed.policy_version, int(arrays["policy_version"]))
        rewards = committed.rewards[~np.isnan(committed.rewards)]
        if not len(rewards):
            return
        self._widen(float(rewards.min()), float(rewards.max()))
        batch = group_means(committed.rewards)
        priors = leave_one_out(self.history(committed.clusters), committed.clusters, batch)
        sampling = priors.within / np.maximum(batch.size, 1.0)
        missed = (batch.mean - priors.mean) ** 2 - sampling - priors.level_variance
        touched, row_of = np.unique(committed.clusters[batch.scored], return_inverse=True)

        def by_cluster(values: Array) -> Array:
            return np.bincount(row_of, weights=values[batch.scored], minlength=len(touched)).astype(np.float64)

        number = by_cluster(np.ones(len(missed)))
        surprise = by_cluster(batch.mean - self._arrays["level"][committed.clusters]) / number
        self._observe(touched, surprise, by_cluster(priors.between + sampling) / number**2)
        age = (arrays["policy_version"] - arrays["version"][touched]).astype(np.float64)
        for name, values in zip(_SUMS, (batch.squares, batch.freedom, missed, np.ones(len(missed))), strict=True):
            arrays[name][touched] = RETENTION**age * arrays[name][touched] + by_cluster(values)
        arrays["version"][touched] = arrays["policy_version"]

    def transfer(self, source: int, target: int, share: float) -> None:
        given = share * self._arrays["precision"][source]
        self._merge(np.array([target]), self._arrays["level"][[source]], np.array([given]))
        self._arrays["precision"][source] -= given
        for name in _SUMS:
            moved = share * self._arrays[name][source]
            self._arrays[name][source] -= moved
            self._arrays[name][target] += moved
        self._arrays["version"][target] = max(self._arrays["version"][source], self._arrays["version"][target])

    def carry_over(self, share: float) -> None:
        now = self.history(np.arange(len(self)))
        self._arrays["precision"][:] = share * now.precision
        for name in _SUMS:
            self._arrays[name][:] = share * getattr(now, name)
        self._arrays["version"][:] = 0
        self._arrays["policy_version"][...] = 0

    def absorb(self, other: ClusterMoments) -> None:
        self.refuse_other(other)
        theirs = other.state()
        self._merge(np.arange(len(self)), theirs["level"], theirs["precision"])
        for name in (*_SUMS, "drift_sum", "drift_weight"):
            self._arrays[name] += theirs[name]
        self._arrays["lowest"][...] = min(self._arrays["lowest"], theirs["lowest"])
        self._arrays["highest"][...] = max(self._arrays["highest"], theirs["highest"])

    def _widen(self, lowest: float, highest: float) -> None:
        """Take in what rewards reach from and to."""
        arrays = self._arrays
        before = self.reach
        arrays["lowest"][...] = min(arrays["lowest"], lowest)
        arrays["highest"][...] = max(arrays["highest"], highest)
        # Until two rewards differed their unit was a guess, and all that is known was measured in it.
        if before == 0 < arrays["highest"] - arrays["lowest"]:
            arrays["precision"] /= self.reach**2

    @property
    def reach(self) -> float:
        """Range of all rewards; 0 where none has differed yet, or none was seen."""
        return max(float(self._arrays["highest"] - self._arrays["lowest"]), 0.0)

    def _observe(self, touched: Indices, surprise: Array, noise: Array) -> None:
        """One step of the filter. All [T]: surprise: mean of the cluster's groups less its level.    noise: variance of that mean."""
        arrays = self._arrays
        before = self.history(touched)
        # Rewards that all agree are no proof that they always will: the variance is never below that of one odd reward.
        noise = noise + 0.25 * (self.reach or 1.0) ** 2 / (before.pooled["groups"] + len(touched)) ** 2
        age = (arrays["policy_version"] - arrays["version"][touched]).astype(np.float64)
        known = (arrays["precision"][touched] > 0) & (age > 0)
        if known.any():
            predicted = 1.0 / before.precision[known] + noise[known]
            step = age[known] * before.variance[known]
            excess = surprise[known] ** 2 - noise[known] - 1.0 / arrays["precision"][touched][known]
            arrays["drift_sum"][...] = DRIFT_RETENTION * arrays["drift_sum"] + (step * excess / predicted**2).sum()
            arrays["drift_weight"][...] = DRIFT_RETENTION * arrays["drift_weight"] + (step**2 / predicted**2).sum()
        arrays["precision"][touched] = before.precision
        self._merge(touched, arrays["level"][touched] + surprise, 1.0 / noise)

    def _merge(self, clusters: Indices, level: Array, precision: Array) -> None:
        """Combine what is known of clusters with something else that is known of them, by their precisions."""
        old, total = self._arrays["precision"][clusters], self._arrays["precision"][clusters] + precision
        share = np.where(total > 0, precision / np.where(total > 0, total, 1.0), 0.0)
        self._arrays["level"][clusters] = np.where(
            old > 0, self._arrays["level"][clusters] + share * (level - self._arrays["level"][clusters]), level
        )
        self._arrays["precision"][clusters] = total


def _drifted(precision: Array, added: Array) -> Array:
    """1 / (variance + added); 0 stays 0."""
    return precision / (1.0 + precision * added)

"""What every kind of cluster moments takes in, remembers and gives back."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.messages.groups import PolicyMove

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class History:
    """What is remembered of some clusters. All arrays [M], one row per group asked for.

    mean, variance: of all rewards of the cluster, in reward units and their square.
    mass: effective number of rewards behind them.    seen: False where nothing was ever folded in.
    within: expected variance of the rewards of one prompt.    between: variance of the prompts' true mean rewards.
    """

    mean: Array
    variance: Array
    mass: Array
    seen: npt.NDArray[np.bool_]
    within: Array
    between: Array


@dataclass(frozen=True, slots=True)
class CommittedRewards:
    """One committed batch, as history takes it in: M groups in folding order.

    clusters: [M].    rewards: [M, G] raw verifier rewards, NaN where there is none.    prompts: M prompt ids.
    policy_version: of the policy that the batch was trained into.    move: how far that step moved it, None if unmeasured.
    lengths: [M, G] completion tokens, NaN past the size of a group.    born, surprisals: as in `RewardBatch`.
    None where nobody knows.
    """

    clusters: Indices
    rewards: Array
    prompts: tuple[str, ...]
    policy_version: int
    move: PolicyMove | None = None
    lengths: Array | None = None
    born: Indices | None = None
    surprisals: Array | None = None
    history: History | None = None


class ClusterMoments(Protocol):
    """Remembered rewards of K clusters. Its owner folds each batch in exactly once, after the policy step."""

    def __len__(self) -> int: ...

    def history(self, clusters: Indices) -> History:
        """The moments of the given clusters ([M] indices), before anything of the current batch."""
        ...

    def fold(self, committed: CommittedRewards) -> None:
        """Take one batch in."""
        ...

    def grow(self, clusters: int) -> None:
        """Make room for clusters up to this number; new ones are unseen."""
        ...

    def transfer(self, source: int, target: int, share: float) -> None:
        """Give `share` in (0, 1] of what `source` remembers to `target`, on top of what that remembers itself."""
        ...

    def carry_over(self, share: float) -> None:
        """Keep `share` in (0, 1] of every cluster's mass and start the clocks anew: what another run can begin with."""
        ...

    def absorb(self, other: "ClusterMoments") -> None:
        """Add what `other` remembers of the same clusters, both as `carry_over` left them. ValueError for another kind."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to go on from here, as named arrays; one row per cluster, or no row at all."""
        ...

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on from `state`. Raises ValueError if it is of another kind or number of clusters."""
        ...


class NamedArrays:
    """Arrays that save, load and grow together: [K] ones with a row per cluster, and scalars."""

    def __init__(self, clusters: int, rows: dict[str, np.dtype], scalars: dict[str, np.ndarray]) -> None:
        self._arrays = {name: np.zeros(clusters, dtype=dtype) for name, dtype in rows.items()} | scalars
        self._clusters = clusters

    def __len__(self) -> int:
        return self._clusters

    def grow(self, clusters: int) -> None:
        more = clusters - self._clusters
        if more < 0:
            raise ValueError(f"{self._clusters} clusters cannot shrink to {clusters}: their moments would be lost")
        for name, array in self._arrays.items():
            if array.ndim:
                self._arrays[name] = np.concatenate([array, np.zeros(more, dtype=array.dtype)])
        self._clusters = clusters

    def refuse_other(self, other: ClusterMoments) -> None:
        """Raise ValueError unless `other` is of the same kind and number of clusters."""
        if type(other) is not type(self) or len(other) != len(self):
            raise ValueError(
                f"{type(self).__name__} of {len(self)} clusters and {type(other).__name__} of {len(other)} do not add up"
            )

    def share_origin(self, origin: np.ndarray, empty: bool) -> None:
        """Go on about the origin of other moments that are to be added. Raises ValueError if these have another, and are not empty."""
        if not empty and origin != self._arrays["origin"]:
            raise ValueError(
                f"moments of rewards about {float(self._arrays['origin']):g} and about {float(origin):g} do not add up"
            )
        self._arrays["origin"][...] = origin

    def state(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._arrays.items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        if "origin" in self._arrays:
            state = {"origin": np.zeros(()), **state}  # which older versions did not have
        expected = {name: array.shape for name, array in self._arrays.items()}
        found = {name: np.shape(array) for name, array in state.items()}
        if expected != found:
            raise ValueError(
                f"saved moments do not fit this run: saved {found}, expected {expected}; "
                "keep moments.estimator and the codebook of the run they come from"
            )
        for name, array in self._arrays.items():
            array[...] = state[name]


FAR = 1e4
"""Times what they differ by, and at least 1, that rewards lie from 0 before their moments are kept about another origin."""


def origin_of(rewards: Array) -> float:
    """What sums of squares of these rewards are best kept about: 0, unless they lie so far from it that squares lose what they
    differ by. rewards: any shape, NaN where there is none."""
    known = rewards[~np.isnan(rewards)]
    if not len(known):
        return 0.0
    middle = 0.5 * (float(known.min()) + float(known.max()))
    return middle if abs(middle) > FAR * max(float(np.ptp(known)), 1.0) else 0.0


@dataclass(frozen=True, slots=True)
class ClusterSums:
    """Sums over the rewards of each cluster that a batch touches. All arrays [T], one row per touched cluster."""

    clusters: Indices
    count: Array
    total: Array
    squares: Array
    groups: Array
    """Groups with at least one reward."""
    group_means: Array
    squared_group_means: Array
    within: Array
    """Squared deviations from the group's own mean."""
    inverse_sizes: Array
    """Sum of 1 / (rewards of the group)."""


def cluster_sums(clusters: Indices, rewards: Array) -> ClusterSums:
    """Sum a batch up by cluster. clusters: [M]. rewards: [M, G], NaN where there is none.

    A cluster whose groups have no reward at all is not touched.
    """
    valid = ~np.isnan(rewards)
    count = valid.sum(axis=1).astype(np.float64)
    rows = count > 0
    touched, inverse = np.unique(clusters[rows], return_inverse=True)
    clean = np.where(valid[rows], rewards[rows], 0.0)
    count = count[rows]
    total = clean.sum(axis=1)
    mean = total / count
    deviation = np.where(valid[rows], clean - mean[:, None], 0.0)

    def by_cluster(values: Array) -> Array:
        return np.bincount(inverse, weights=values, minlength=len(touched)).astype(np.float64)

    return ClusterSums(
        clusters=touched.astype(np.int64),
        count=by_cluster(count),
        total=by_cluster(total),
        squares=by_cluster((clean**2).sum(axis=1)),
        groups=by_cluster(np.ones_like(count)),
        group_means=by_cluster(mean),
        squared_group_means=by_cluster(mean**2),
        within=by_cluster((deviation**2).sum(axis=1)),
        inverse_sizes=by_cluster(1.0 / count),
    )

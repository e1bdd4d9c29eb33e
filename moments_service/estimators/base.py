"""What every advantage estimator takes and gives."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.moments import CommittedRewards, History, Indices
from moments_service.moments.leave_one_out import Priors
from moments_service.strict import StrictModel

SIGNAL_FLOOR = 1e-6
"""Advantages below this magnitude push nothing."""


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """What an estimator sees of a batch: M groups of up to G completions, in feed order.

    rewards: [M, G] raw verifier rewards, NaN where a completion has none.    lengths: [M, G] completion tokens.
    prompts: M prompt ids.    history: the moments of each group's cluster before this batch, [M] rows.
    clusters: [M], whose moments those are.    born: [M] policy version that each group was sampled by.
    surprisals: [M, G] mean -log-prob of a completion's tokens, in nats.
    sizes: [M] completions that each group was sampled with, errors among them; None: just those with a reward.
    None where nobody knows.
    """

    rewards: Array
    lengths: Array
    prompts: tuple[str, ...]
    history: History
    clusters: Indices | None = None
    born: Indices | None = None
    surprisals: Array | None = None
    sizes: Indices | None = None

    def lone_survivors(self) -> npt.NDArray[np.bool_]:
        """[M]: whether errors have left a single reward of a group that was sampled with more."""
        count = (~np.isnan(self.rewards)).sum(axis=1)
        return np.zeros(len(count), dtype=np.bool_) if self.sizes is None else (count == 1) & (self.sizes > 1)


@dataclass(frozen=True, slots=True)
class Advantages:
    """The advantages of M groups and what they were made of: A = (r - baseline) / scale.

    values: [M, G], NaN where a completion has no reward.    baseline, scale: [M].
    weight: [M], trust in history; 0 for estimators without history.
    cluster_scale: [M], the part of the scale that is one for all groups of a cluster, where that is what it was made to be.
    prior: what was expected of each prompt before its group, by an estimator that does.
    """

    values: Array
    baseline: Array
    scale: Array
    weight: Array
    cluster_scale: Array | None = None
    prior: Priors | None = None

    def without_cluster_scale(self) -> Array:
        """[M, G]: the values before clusters were weighted by a scale of their own."""
        return self.values if self.cluster_scale is None else self.values * self.cluster_scale[:, None]

    def carries_signal(self) -> npt.NDArray[np.bool_]:
        """[M]: whether any completion of the group is pushed anywhere."""
        return carries_signal(self.values)


def carries_signal(values: Array) -> npt.NDArray[np.bool_]:
    """[M]: whether any advantage of a group pushes the policy anywhere. values: [M, G], NaN where there is none."""
    return np.abs(np.nan_to_num(values)).max(axis=1, initial=0.0) > SIGNAL_FLOOR


class MissingFieldError(ValueError):
    """A batch does not say what its estimator goes by; the message names both."""


class EstimatorOptions(StrictModel):
    """What one can set about an estimator. Each kind has its own, beside it; `kind` is its name in recipes."""

    kind: str

    def create(self) -> "Estimator":
        """The estimator with these options, its memory empty."""
        raise NotImplementedError

    @property
    def fades_by_move(self) -> bool:
        """Whether anything it remembers fades by how far a step moves the policy, so that the learner has to measure it."""
        return False

    def caution(self, low: float, high: float) -> str | None:
        """What one should know before it is used on rewards from `low` to `high`; None if nothing."""
        return None


class Estimator(Protocol):
    """Turns the rewards of a batch into advantages. Calling it changes nothing."""

    def __call__(self, batch: RewardBatch) -> Advantages: ...


@runtime_checkable
class RememberingEstimator(Protocol):
    """An estimator with a memory of its own, which is saved, restored and replayed with the moments."""

    def __call__(self, batch: RewardBatch) -> Advantages: ...

    def fold(self, committed: CommittedRewards) -> None:
        """Take one batch in, after its policy step, exactly once."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to go on from here, as named arrays."""
        ...

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on from `state`."""
        ...


def advantages(
    rewards: Array, baseline: Array, scale: Array, epsilon: float, weight: Array | None = None
) -> Advantages:
    """A = (r - baseline) / (scale + epsilon). rewards: [M, G].    baseline, scale, weight: [M]."""
    values = (rewards - baseline[:, None]) / (scale[:, None] + epsilon)
    return Advantages(values, baseline, scale, np.zeros_like(baseline) if weight is None else weight)

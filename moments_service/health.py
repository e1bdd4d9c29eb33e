"""Change-point alarms: rewards and errors that suddenly are not what their cluster's history says.

A grader that broke, a verifier that times out, a policy that found a loophole: each shows as a step in one of two
averages, in one cluster or in all. Each of them is followed by a two-sided CUSUM of its standardised deviation from
what was expected; learning moves averages too, but slowly, and history moves with it.
Source: Page (1954), Continuous Inspection Schemes, with reference value SLACK.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array, group_moments
from moments_service.moments import CommittedRewards, DecayedCounts, Indices

SLACK = 1.0
"""Standard deviations that an average may be off in every batch without ever raising an alarm."""
LARGEST = 3.0
"""One batch counts at most so many standard deviations, so that no alarm hangs on one odd batch of a cluster."""
WARM_UP = 5
"""Batches that a cluster must have been seen in before it can raise an alarm."""
RATE = 0.1
"""Weight of the newest batch in the expected error rate and length."""
LEAST_ERROR_RATE = 0.02
TREND_RATE = 0.05
"""Weight of the newest batch in how far rewards run ahead of a history that remembers older policies. Slow: a change must
have lasted before it is taken for learning."""
LENGTH_CHANGE = 0.25
"""A jump of rewards with at least this relative change of the completions' length is called a loophole."""

LARGEST_PUSH = 1e3
"""An advantage of more than so many times the batch's largest reward comes from a scale that is next to nothing."""

AlarmKind = Literal[
    "reward fell", "reward jumped", "reward jumped with length", "errors rose", "many errors", "advantages exploded"
]
RETENTION = 0.95
"""What one policy version leaves of what rewards are compared with."""
PRIOR = (1.0, 1.0)
"""Pseudo-counts of reward 1 and of reward 0 in it."""
_AVERAGES = ("reward", "error")
_EXPECTED = "expected_"


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something broke, or looks like it."""

    kind: AlarmKind
    cluster: int | None
    """None for all clusters together."""
    expected: float
    found: float

    def __str__(self) -> str:
        where = "in all clusters" if self.cluster is None else f"in cluster {self.cluster}"
        return f"{self.kind} {where}: {self.found:.3g}, expected {self.expected:.3g}"


@dataclass(frozen=True, slots=True)
class Observation:
    """What one batch says about each cluster that it touches, and in the last row about all of them. Arrays [T + 1]."""

    clusters: Indices
    """-1 for all clusters."""
    found: dict[str, Array]
    expected: dict[str, Array]
    deviation: dict[str, Array]
    """In standard deviations, clipped to LARGEST; 0 where nothing can be said."""
    rewarded: npt.NDArray[np.bool_]
    """Whether any group has a reward, and a history to compare it with."""


class HealthMonitor:
    """CUSUMs of K clusters and of all of them together (the last row of every array). `threshold`: where an alarm is raised.

    What is expected comes from a memory of its own, the same under every estimator: one that is slow on purpose, since what
    follows rewards as fast as they move would find nothing odd in a grader that broke.
    """

    def __init__(self, clusters: int, threshold: float) -> None:
        self.threshold = threshold
        self._expected = DecayedCounts(clusters, RETENTION, PRIOR)
        rows = clusters + 1
        self._arrays: dict[str, np.ndarray] = {
            name: np.zeros(rows, dtype=np.float32)
            for name in (
                "reward_up",
                "reward_down",
                "error_up",
                "reward_trend",
                "error_rate",
                "length",
            )
        } | {"batches": np.zeros(rows, dtype=np.int32)}

    def observe(self, clusters: Indices, rewards: Array, lengths: Array) -> Observation:
        """Compare a batch with what was expected of it; changes nothing.

        clusters: [M].    rewards: [M, G], NaN where there is none.    lengths: [M, G] completion tokens, NaN past the size
        of a group.
        """
        history = self._expected.history(clusters)
        counted = ~np.isnan(lengths)
        sizes = counted.sum(axis=1)
        touched, row_of = np.unique(clusters, return_inverse=True)
        everything = len(touched)
        mean, _, count = group_moments(rewards)

        def total(values: Array) -> Array:
            sums = np.empty(everything + 1)
            sums[:-1] = np.bincount(row_of, weights=values, minlength=everything)
            sums[-1] = values.sum()
            return sums

        groups = total((count > 0).astype(np.float64))
        some = np.maximum(groups, 1.0)
        completions = np.maximum(total(sizes.astype(np.float64)), 1.0)
        rows = np.append(touched, -1)
        state = {name: array[rows] for name, array in self._arrays.items()}
        scored = count > 0
        # A group's mean varies between prompts and by sampling; a sum of M of them has the sum of their variances.
        noise = np.where(scored, history.between + history.within / np.maximum(count, 1.0), 0.0)
        found = {
            "reward": total(np.where(scored, mean, 0.0)) / some,
            "error": 1.0 - total(count) / completions,
            "length": total(np.where(counted, lengths, 0.0).sum(axis=1)) / completions,
        }
        expected = {
            "reward": total(np.where(scored, history.mean, 0.0)) / some + state["reward_trend"],
            "error": np.maximum(state["error_rate"], LEAST_ERROR_RATE),
            "length": state["length"],
        }
        rate = expected["error"]
        spread = {
            "reward": np.sqrt(total(noise)) / some,
            "error": np.sqrt(rate * (1.0 - rate) / completions),
        }
        warm = state["batches"] >= WARM_UP
        seen = np.append(np.bincount(row_of, weights=history.seen, minlength=everything) > 0, history.seen.all())
        deviation = {name: self._deviation(found[name], expected[name], spread[name], warm) for name in _AVERAGES}
        # Rewards of a cluster whose groups all failed are not zero, they are unknown.
        rewarded = (groups > 0) & seen
        deviation["reward"] = np.where(rewarded, deviation["reward"], 0.0)
        return Observation(rows, found, expected, deviation, rewarded)

    def alarms(self, observation: Observation) -> tuple[Alarm, ...]:
        """The alarms that this batch raises; changes nothing."""
        return tuple(self._alarms(observation, self._sums(observation)))

    def fold(self, committed: CommittedRewards) -> None:
        """Take a batch in. Its groups say nothing of lengths where nobody counted them."""
        if committed.lengths is not None and len(committed.clusters):
            self._sum_up(self.observe(committed.clusters, committed.rewards, committed.lengths))
        self._expected.fold(committed)

    def _sum_up(self, observation: Observation) -> None:
        """A sum that raised an alarm starts again from zero: the new level is what comes next."""
        rows = observation.clusters
        for name, values in self._sums(observation).items():
            self._arrays[name][rows] = np.where(values > self.threshold, 0.0, values)
        arrays = self._arrays
        first = arrays["batches"][rows] == 0
        surprise = observation.found["reward"] - observation.expected["reward"]
        arrays["reward_trend"][rows] += np.where(observation.rewarded, TREND_RATE * surprise, 0.0)
        rate = np.where(first, 1.0, RATE)
        arrays["error_rate"][rows] += rate * (observation.found["error"] - arrays["error_rate"][rows])
        arrays["length"][rows] += rate * (observation.found["length"] - arrays["length"][rows])
        arrays["batches"][rows] += 1

    def transfer(self, source: int, target: int, share: float) -> None:
        """What is expected of `target` comes from `source` for this share, as its moments do."""
        self._expected.transfer(source, target, share)

    def grow(self, clusters: int) -> None:
        """Make room for clusters up to this number; the row of all of them stays the last."""
        self._expected.grow(clusters)
        for name, array in self._arrays.items():
            more = np.zeros(clusters + 1 - len(array), dtype=array.dtype)
            self._arrays[name] = np.concatenate([array[:-1], more, array[-1:]])

    def state(self) -> dict[str, np.ndarray]:
        own = {name: array.copy() for name, array in self._arrays.items()}
        return own | {f"{_EXPECTED}{name}": array for name, array in self._expected.state().items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        self._arrays = {name: state[name].copy() for name in self._arrays}
        expected = {name.removeprefix(_EXPECTED): array for name, array in state.items() if name.startswith(_EXPECTED)}
        if expected:  # else an older version saved it, and what is expected is learned anew
            self._expected.load_state(expected)

    @staticmethod
    def _deviation(found: Array, expected: Array, spread: Array, warm: npt.NDArray[np.bool_]) -> Array:
        known = spread > 0
        deviation = (found - expected) / np.where(known, spread, 1.0)
        return np.where(warm & known, np.minimum(np.maximum(deviation, -LARGEST), LARGEST), 0.0)

    def _sums(self, observation: Observation) -> dict[str, npt.NDArray[np.float64]]:
        rows, deviation = observation.clusters, observation.deviation
        return {
            "reward_up": np.maximum(0.0, self._arrays["reward_up"][rows] + deviation["reward"] - SLACK),
            "reward_down": np.maximum(0.0, self._arrays["reward_down"][rows] - deviation["reward"] - SLACK),
            "error_up": np.maximum(0.0, self._arrays["error_up"][rows] + deviation["error"] - SLACK),
        }

    def _alarms(self, observation: Observation, sums: dict[str, Array]) -> Iterable[Alarm]:
        over = {name: values > self.threshold for name, values in sums.items()}
        rows = np.flatnonzero(np.logical_or.reduce(list(over.values())))
        for row in rows.tolist():
            cluster = int(observation.clusters[row])
            length, usual = float(observation.found["length"][row]), float(observation.expected["length"][row])
            other_length = abs(length - usual) > LENGTH_CHANGE * max(usual, 1.0)
            kinds: dict[str, AlarmKind] = {
                "reward_up": "reward jumped with length" if other_length else "reward jumped",
                "reward_down": "reward fell",
                "error_up": "errors rose",
            }
            for name, kind in kinds.items():
                if over[name][row]:
                    average = "error" if name == "error_up" else "reward"
                    expected, found = observation.expected[average][row], observation.found[average][row]
                    yield Alarm(kind, None if cluster < 0 else cluster, float(expected), float(found))


def many_errors(limit: float, share: float) -> Alarm:
    """The alarm of a batch in which more than `limit` of the completions, `share`, have no reward."""
    return Alarm("many errors", cluster=None, expected=limit, found=share)


def exploded(clusters: Indices, rewards: Array, advantages: Array) -> tuple[Alarm, ...]:
    """The alarm of a batch with an advantage out of all proportion to its rewards; names the worst cluster.

    clusters: [M].    rewards, advantages: [M, G], NaN where there is none.
    """
    largest = np.abs(np.nan_to_num(advantages)).max(axis=1, initial=0.0)
    limit = LARGEST_PUSH * max(1.0, float(np.abs(np.nan_to_num(rewards)).max(initial=0.0)))
    worst = int(largest.argmax())
    if largest[worst] <= limit:
        return ()
    return (Alarm("advantages exploded", int(clusters[worst]), expected=limit, found=float(largest[worst])),)


def error_share(batch: CommittedRewards) -> float:
    """Share of a batch's completions that have no reward."""
    assert batch.lengths is not None
    completions = ~np.isnan(batch.lengths)
    return float((np.isnan(batch.rewards) & completions).sum() / completions.sum())

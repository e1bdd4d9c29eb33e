"""What single prompts deviated by from their cluster when they came before, and how much of such deviations lasts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moments_service.blend import Array
from moments_service.estimators.prompt_table import PromptTable, require_names
from moments_service.moments.group_means import GroupMeans
from moments_service.moments.leave_one_out import Priors

VISIT_RETENTION = 0.7
"""What a visit of a prompt leaves of the visits before it."""
SCORE_RETENTION = 0.95
"""What a batch leaves of what earlier ones said about how much lasts."""
PRIOR_VISITS = 8.0
"""Visits' worth of the guess that half of what a prompt deviates by lasts."""

_COLUMNS = {"deviation": 0.0, "visits": 0.0}
_SCORES = ("lasted", "scored")


class PromptDeviations:
    """A prompt's mean deviation from its cluster's mean, and the share of it that comes back.

    Deviations, not rewards, are remembered: what the policy learns of all the cluster's prompts moves the expectation of this one
    too. The share that lasts is scored: the product of a deviation now and the one remembered, over the variance between
    prompts, averages to it, since their sampling errors are independent. It fades as prompts change places.
    """

    def __init__(self) -> None:
        self._prompts = PromptTable(_COLUMNS)
        self._scores = {name: np.zeros(()) for name in _SCORES}

    @property
    def lasting(self) -> float:
        """Share of the variance between prompts of a cluster that a prompt keeps until it comes again, in [0, 1]."""
        lasted, scored = (float(self._scores[name]) for name in _SCORES)
        return min(max((lasted + 0.5 * PRIOR_VISITS) / (scored + PRIOR_VISITS), 0.0), 1.0)

    def applied(self, prompts: Sequence[str], groups: GroupMeans, cluster: Priors) -> Priors:
        """The priors of these prompts, [M], with their own past. cluster: without it."""
        rows = self._prompts.rows(prompts)
        share = self._share(self._prompts.read("visits", rows), groups, cluster)
        return replace(
            cluster,
            mean=cluster.mean + share * self._prompts.read("deviation", rows),
            between=cluster.between * (1.0 - self.lasting * share),
        )

    def fold(self, prompts: Sequence[str], groups: GroupMeans, cluster: Priors) -> None:
        """Take a batch in. cluster: the priors that it had without the prompts' own past."""
        scored = np.flatnonzero(groups.scored)
        deviation = (groups.mean - cluster.mean)[scored]
        names = [prompts[m] for m in scored.tolist()]
        self._score(self._prompts.rows(prompts), groups, cluster)
        # Sorted, so that what is remembered does not hang on the order of groups.
        distinct = sorted(set(names))
        place = {name: row for row, name in enumerate(distinct)}
        at = np.array([place[name] for name in names], dtype=np.int64)
        number = np.bincount(at, minlength=len(distinct)).astype(np.float64)
        total = np.bincount(at, weights=deviation, minlength=len(distinct))
        rows = self._prompts.enter(distinct)
        before = VISIT_RETENTION * self._prompts.read("visits", rows)
        self._prompts.write(
            "deviation", rows, (before * self._prompts.read("deviation", rows) + total) / (before + number)
        )
        self._prompts.write("visits", rows, before + number)

    def state(self) -> dict[str, np.ndarray]:
        return self._prompts.state() | {name: score.copy() for name, score in self._scores.items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        require_names(state, set(self.state()))
        self._prompts.load_state({name: array for name, array in state.items() if name not in _SCORES})
        self._scores = {name: np.array(state[name], dtype=np.float64) for name in _SCORES}

    def _share(self, visits: Array, groups: GroupMeans, cluster: Priors) -> Array:
        """[M] of its remembered deviation that each prompt is expected to deviate by, 0 where it never came."""
        lasting = self.lasting * cluster.between * visits
        passing = (1.0 - self.lasting) * cluster.between + cluster.within / np.maximum(groups.size, 1.0)
        total = lasting + passing
        return np.where(total > 0, lasting / np.where(total > 0, total, 1.0), 0.0)

    def _score(self, rows: np.ndarray, groups: GroupMeans, cluster: Priors) -> None:
        visits, remembered = self._prompts.read("visits", rows), self._prompts.read("deviation", rows)
        known = groups.scored & (visits > 0) & (cluster.between > 0)
        share = np.where(known, self._share(visits, groups, cluster), 0.0)
        found = (groups.mean - cluster.mean) * remembered / np.where(known, cluster.between, 1.0)
        self._scores["lasted"][...] = SCORE_RETENTION * self._scores["lasted"] + np.sort(share * found).sum()
        self._scores["scored"][...] = SCORE_RETENTION * self._scores["scored"] + np.sort(share).sum()

"""The rewards of a log as columns, cut into windows in which a policy is taken for one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.messages.table import padded
from moments_service.moments import Indices
from moments_service.offline.logs import LoggedGroup

WINDOWS = 8
PROMPTS_A_CELL = 12
"""Prompts of each cluster that a window should have on average."""


@dataclass(frozen=True, slots=True)
class LoggedRewards:
    """The groups of a log that have a reward, as columns. N groups of up to G completions."""

    rewards: Array
    """[N, G], NaN where there is none."""
    steps: Indices
    """[N], not falling."""
    prompts: Indices
    """[N] numbers of prompts; each group its own where the log does not say."""
    clusters: Indices
    """[N] numbers from 0."""
    prompts_known: bool

    @classmethod
    def of(cls, groups: Sequence[LoggedGroup]) -> "LoggedRewards":
        """Groups in order of their steps, each with a cluster."""
        scored = [group for group in groups if group.scored]
        known = all(group.prompt for group in scored)
        names = [group.prompt for group in scored] if known else [str(place) for place in range(len(scored))]
        width = max((len(group.rewards) for group in scored), default=0)
        return cls(
            rewards=padded([group.rewards for group in scored], width, np.nan),
            steps=np.array([group.step for group in scored], dtype=np.int64),
            prompts=numbered(names),
            clusters=numbered([group.cluster for group in scored]),
            prompts_known=known,
        )

    @property
    def sizes(self) -> Indices:
        """[N] rewards of each group."""
        return (~np.isnan(self.rewards)).sum(axis=1)

    def uniform_share(self) -> float:
        """Share of the groups of two rewards and more whose rewards are all equal; NaN without any."""
        several = self.rewards[self.sizes > 1]
        if not len(several):
            return float("nan")
        return float((np.nanmax(several, axis=1) == np.nanmin(several, axis=1)).mean())

    def windows(self) -> Indices:
        """[N]: the window of each group, 0 to at most WINDOWS - 1; a step is in one window."""
        clusters = int(self.clusters.max(initial=0)) + 1
        count = int(np.clip(len(self.steps) // (PROMPTS_A_CELL * clusters), 1, WINDOWS))
        middle = (np.searchsorted(self.steps, self.steps) + np.searchsorted(self.steps, self.steps, side="right")) / 2
        return numbered((middle * count / max(len(self.steps), 1)).astype(np.int64))


def numbered(values: Sequence[object] | npt.NDArray[np.generic]) -> Indices:
    """Numbers from 0 for what differs."""
    if isinstance(values, np.ndarray):
        return np.asarray(np.unique(values, return_inverse=True)[1], dtype=np.int64)
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)

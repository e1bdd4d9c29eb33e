"""The rewards of a log as columns, cut into windows in which a policy is taken for one."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.ledger import LedgerReader
from moments_service.messages.table import padded
from moments_service.moments import Indices
from moments_service.offline.logs import LoggedGroup

STEPS_AT_ONCE = 64
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
    sources: Indices | None = None
    """[N] numbers of the prompts' sources, where the log says them."""

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

    @classmethod
    def of_ledger(cls, directory: Path, limit: int) -> "LoggedRewards":
        """About the last `limit` groups that the run of a ledger folded in. Raises FileNotFoundError, LedgerDamagedError."""
        rows: list[tuple[int, str, str, str, int]] = []
        with LedgerReader(directory) as reader:
            for newest in _folded_backwards(reader):
                rows = [*newest, *rows]
                if len(rows) >= limit:
                    break
        rewards = [json.loads(row[2]) for row in rows]
        scored = [place for place, group in enumerate(rewards) if any(reward is not None for reward in group)]
        width = max((len(rewards[place]) for place in scored), default=0)
        return cls(
            rewards=padded([rewards[place] for place in scored], width, np.nan),
            steps=np.array([rows[place][0] for place in scored], dtype=np.int64),
            prompts=numbered([rows[place][1] for place in scored]),
            clusters=numbered([rows[place][4] for place in scored]),
            prompts_known=True,
            sources=numbered([rows[place][3] for place in scored]),
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

    def drift(self) -> float:
        """What a step adds to the mean reward of a cluster: one slope for all of them, by least squares."""
        step, count = numbered(self.steps).astype(np.float64), self.sizes.astype(np.float64)
        mean = np.nanmean(self.rewards, axis=1)
        total = np.bincount(self.clusters, weights=count)
        since = step - (np.bincount(self.clusters, weights=count * step) / total)[self.clusters]
        beyond = mean - (np.bincount(self.clusters, weights=count * mean) / total)[self.clusters]
        spread = float((count * since**2).sum())
        return float((count * since * beyond).sum()) / spread if spread > 0 else 0.0

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


def _folded_backwards(reader: LedgerReader) -> Iterator[list[tuple[int, str, str, str, int]]]:
    """(step, prompt, rewards, source, cluster) of the groups of some steps, the newest first."""
    for incarnation, first, last in reversed(reader.lineage(reader.last_incarnation())):
        query = "SELECT step FROM commits WHERE incarnation = ? AND step BETWEEN ? AND ? ORDER BY step"
        steps = [step for (step,) in reader.query(query, (incarnation, first, last))]
        while steps:
            steps, newest = steps[:-STEPS_AT_ONCE], steps[-STEPS_AT_ONCE:]
            rows = reader.folded((incarnation, newest[0], newest[-1]), "prompt_id, rewards", "source, cluster")
            yield [(row[0], *row[3:]) for row in rows]

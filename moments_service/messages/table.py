"""Many group headers as columns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.messages.groups import GroupStatus, ScoredGroup

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GroupTable:
    """N group headers as columns: the form in which many of them travel, are blended and are written at once.

    Columns mean what the fields of `ScoredGroup` mean. G is the size of the largest group; `sizes` says how far each row
    is filled, and past it rewards are NaN and lengths 0.
    """

    group_ids: tuple[str, ...]
    prompt_ids: tuple[str, ...]
    sources: tuple[str, ...]
    difficulties: tuple[str, ...]
    sequence: npt.NDArray[np.int64]
    """[N]"""
    sizes: npt.NDArray[np.int64]
    """[N] completions of each group."""
    rewards: Array
    """[N, G], NaN where there is none."""
    errors: tuple[tuple[str | None, ...] | None, ...]
    """None for a group without errors."""
    lengths: npt.NDArray[np.int64]
    """[N, G]"""
    truncated: npt.NDArray[np.bool_]
    """[N, G]"""
    policy_versions: npt.NDArray[np.int64]
    """[N, 2]"""
    turns: npt.NDArray[np.int64]
    """[N, G]"""
    lost: npt.NDArray[np.bool_]
    """[N]"""

    def __len__(self) -> int:
        return len(self.group_ids)

    @classmethod
    def of(cls, groups: Sequence[ScoredGroup]) -> "GroupTable":
        """Pack headers."""
        width = max((len(group.rewards) for group in groups), default=0)
        return cls(
            group_ids=tuple(group.group_id for group in groups),
            prompt_ids=tuple(group.prompt_id for group in groups),
            sources=tuple(group.source for group in groups),
            difficulties=tuple(group.difficulty for group in groups),
            sequence=np.array([group.sequence for group in groups], dtype=np.int64),
            sizes=np.array([len(group.rewards) for group in groups], dtype=np.int64),
            rewards=padded([group.rewards for group in groups], width, np.nan),
            errors=tuple(group.errors if any(group.errors) else None for group in groups),
            lengths=padded([group.lengths for group in groups], width, 0).astype(np.int64),
            truncated=padded([group.truncated for group in groups], width, False).astype(np.bool_),
            policy_versions=np.array([group.policy_versions for group in groups], dtype=np.int64).reshape(-1, 2),
            turns=padded([group.turns for group in groups], width, 0).astype(np.int64),
            lost=np.array([group.status is GroupStatus.LOST for group in groups], dtype=np.bool_),
        )

    def check(self) -> None:
        """Raises ValueError for a completion with neither a reward nor an error, or with both, or with an infinite one."""
        if np.isinf(self.rewards).any():
            row = int(np.isinf(self.rewards).any(axis=1).argmax())
            raise ValueError(f"group {self.group_ids[row]}: a reward is not finite")
        missing = (np.isnan(self.rewards) & self.filled()).sum(axis=1)
        explained = np.zeros(len(self), dtype=np.int64)
        for row, errors in enumerate(self.errors):
            if errors is not None:
                explained[row] = sum(error is not None for error in errors)
        if (missing != explained).any():
            row = int((missing != explained).argmax())
            raise ValueError(f"group {self.group_ids[row]}: every completion needs a reward or an error, and not both")

    def filled(self) -> npt.NDArray[np.bool_]:
        """[N, G]: whether there is a completion."""
        return np.arange(self.rewards.shape[1]) < self.sizes[:, None]

    def scored(self) -> npt.NDArray[np.bool_]:
        """[N]: whether any completion has a reward."""
        return np.logical_not(np.isnan(self.rewards)).any(axis=1)

    def status(self, row: int) -> GroupStatus:
        if self.lost[row]:
            return GroupStatus.LOST
        return GroupStatus.ERROR if np.isnan(self.rewards[row]).all() else GroupStatus.SCORED

    def group(self, row: int) -> ScoredGroup:
        """One header."""
        size = int(self.sizes[row])
        rewards = self.rewards[row, :size].tolist()
        oldest, newest = self.policy_versions[row].tolist()
        return ScoredGroup(
            group_id=self.group_ids[row],
            prompt_id=self.prompt_ids[row],
            source=self.sources[row],
            difficulty=self.difficulties[row],
            sequence=int(self.sequence[row]),
            rewards=tuple(None if reward != reward else reward for reward in rewards),
            errors=self.errors[row] or (None,) * size,
            lengths=tuple(self.lengths[row, :size].tolist()),
            truncated=tuple(self.truncated[row, :size].tolist()),
            policy_versions=(oldest, newest),
            turns=tuple(self.turns[row, :size].tolist()),
            status=self.status(row),
        )

    def take(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> "GroupTable":
        """The given rows in the given order, no wider than they need."""
        index = np.asarray(rows, dtype=np.int64)
        sizes = self.sizes[index]
        width = int(sizes.max(initial=0))
        return GroupTable(
            group_ids=pick(self.group_ids, index),
            prompt_ids=pick(self.prompt_ids, index),
            sources=pick(self.sources, index),
            difficulties=pick(self.difficulties, index),
            sequence=self.sequence[index],
            sizes=sizes,
            rewards=np.ascontiguousarray(self.rewards[index, :width]),
            errors=pick(self.errors, index),
            lengths=self.lengths[index, :width],
            truncated=self.truncated[index, :width],
            policy_versions=self.policy_versions[index],
            turns=self.turns[index, :width],
            lost=self.lost[index],
        )

    def trimmed(self) -> "GroupTable":
        """All rows, no wider than they need. Rewards in C order, on which the order of their sums depends."""
        if self.rewards.shape[1] > self.sizes.max(initial=0):
            return self.take(np.arange(len(self)))
        return replace(self, rewards=np.ascontiguousarray(self.rewards))


def pick(column: Sequence[T], rows: npt.NDArray[np.int64]) -> tuple[T, ...]:
    """The entries of a column at `rows`."""
    if len(rows) < 2:
        return tuple(column[row] for row in rows.tolist())
    picked: tuple[T, ...] = itemgetter(*rows.tolist())(column)
    return picked


def join_tables(tables: Sequence[GroupTable]) -> GroupTable:
    """All rows of all tables; at least one table."""
    width = max(table.rewards.shape[1] for table in tables)

    def wide(columns: Sequence[np.ndarray], missing: float | bool) -> np.ndarray:
        parts = [
            column
            if column.shape[1] == width
            else np.pad(column, ((0, 0), (0, width - column.shape[1])), constant_values=missing)
            for column in columns
        ]
        return np.concatenate(parts)

    return GroupTable(
        group_ids=tuple(name for table in tables for name in table.group_ids),
        prompt_ids=tuple(name for table in tables for name in table.prompt_ids),
        sources=tuple(name for table in tables for name in table.sources),
        difficulties=tuple(name for table in tables for name in table.difficulties),
        sequence=np.concatenate([table.sequence for table in tables]),
        sizes=np.concatenate([table.sizes for table in tables]),
        rewards=wide([table.rewards for table in tables], np.nan),
        errors=tuple(errors for table in tables for errors in table.errors),
        lengths=wide([table.lengths for table in tables], 0),
        truncated=wide([table.truncated for table in tables], False),
        policy_versions=np.concatenate([table.policy_versions for table in tables]),
        turns=wide([table.turns for table in tables], 0),
        lost=np.concatenate([table.lost for table in tables]),
    )


def padded(rows: Sequence[Sequence[float | None]], width: int, missing: float) -> Array:
    """Ragged rows as [N, width] float64, `missing` where there is nothing."""
    table = np.full((len(rows), width), missing, dtype=np.float64)
    for i, row in enumerate(rows):
        table[i, : len(row)] = [missing if value is None else value for value in row]
    return table

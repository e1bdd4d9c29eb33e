"""Many group headers as columns."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.messages.groups import LARGEST_REWARD, GroupStatus, ScoredGroup

T = TypeVar("T")

_NOTHING = {"rewards": np.nan, "lengths": 0, "truncated": False, "turns": 0, "read": 0}
"""The columns of completions, [N, G], with what stands past the size of a group."""


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
    prompt_tokens: npt.NDArray[np.int64]
    """[N]"""
    read: npt.NDArray[np.int64]
    """[N, G]"""
    lost: npt.NDArray[np.bool_]
    """[N]"""
    parts: tuple[tuple[dict[str, float] | None, ...] | None, ...]
    """None for a group whose verifier says nothing of parts."""

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
            prompt_tokens=np.array([group.prompt_tokens for group in groups], dtype=np.int64),
            read=padded([group.read for group in groups], width, 0).astype(np.int64),
            lost=np.array([group.status is GroupStatus.LOST for group in groups], dtype=np.bool_),
            parts=tuple(group.parts if any(group.parts or ()) else None for group in groups),
        )

    def check(self) -> None:
        """Raises ValueError for a completion with neither a reward nor an error, or with both, or with one that no cluster can remember."""
        too_large = np.abs(self.rewards) > LARGEST_REWARD
        if too_large.any():
            row, place = (int(index) for index in np.argwhere(too_large)[0])
            raise ValueError(
                f"group {self.group_ids[row]}: reward {self.rewards[row, place]} of completion {place} is beyond +-{LARGEST_REWARD:g}"
            )
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

    def take(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> "GroupTable":
        """The given rows in the given order, no wider than they need."""
        index = np.asarray(rows, dtype=np.int64)
        width = int(self.sizes[index].max(initial=0))

        def taken(name: str, column: Any) -> Any:
            if isinstance(column, tuple):
                return pick(column, index)
            return np.ascontiguousarray(column[index, :width]) if name in _NOTHING else column[index]

        return GroupTable(**{name: taken(name, getattr(self, name)) for name in self.__slots__})

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

    def joined(name: str, columns: list[Any]) -> Any:
        if isinstance(columns[0], tuple):
            return tuple(itertools.chain.from_iterable(columns))
        if name in _NOTHING:
            missing = [((0, 0), (0, width - column.shape[1])) for column in columns]
            columns = [
                np.pad(column, more, constant_values=_NOTHING[name]) if more[1][1] else column
                for column, more in zip(columns, missing, strict=True)
            ]
        return np.concatenate(columns)

    names = GroupTable.__slots__
    return GroupTable(**{name: joined(name, [getattr(table, name) for table in tables]) for name in names})


def padded(rows: Sequence[Sequence[float | None]], width: int, missing: float) -> Array:
    """Ragged rows as [N, width] float64, `missing` where there is nothing."""
    table = np.full((len(rows), width), missing, dtype=np.float64)
    for i, row in enumerate(rows):
        table[i, : len(row)] = [missing if value is None else value for value in row]
    return table

"""What all ledgers of a run say together: one directory, or one a shard.

A commit is written to every shard, each with its part of the groups; it counts once all of them hold it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moments_service.ledger.parts import part_paths
from moments_service.ledger.reader import LedgerCommit, LedgerReader
from moments_service.ledger.schema import Row
from moments_service.messages.groups import ScoredGroup
from moments_service.moments import CommittedRewards
from moments_service.state import Counts

_SHARD = "shard-"


def shard_directories(directory: Path, shards: int) -> list[Path]:
    """Where the ledgers of so many shards lie; a single one lies in the directory itself."""
    return [directory] if shards == 1 else [directory / f"{_SHARD}{number}" for number in range(shards)]


def ledger_directories(directory: Path) -> list[Path]:
    """Every directory that holds a ledger of the run. A resume may have changed the number of shards, so they mix."""
    shards = sorted(directory.glob(f"{_SHARD}*"), key=lambda path: int(path.name.removeprefix(_SHARD)))
    return [path for path in (directory, *shards) if part_paths(path)]


class RunLedger(LedgerReader):
    """Read-only view of all ledgers of a run, as if there were one."""

    def __init__(self, directory: Path) -> None:
        """Raises FileNotFoundError if there is none."""
        self.directory = directory
        self._readers = [LedgerReader(path) for path in ledger_directories(directory)]
        if not self._readers:
            raise FileNotFoundError(f"no ledger in {directory}")

    def close(self) -> None:
        for reader in self._readers:
            reader.close()

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Rows of any SELECT over the tables in schema.py, asked of every part of every shard by itself."""
        return [row for reader in self._readers for row in reader.query(sql, values)]

    def incarnations(self) -> dict[int, int]:
        return {number: after for reader in self._readers for number, after in reader.incarnations().items()}

    def steps(self, incarnation: int) -> list[int]:
        stretches = self.lineage(incarnation)
        return [
            step
            for number, first, last in stretches
            for step in sorted(self._complete(number))
            if first <= step <= last
        ]

    def commits(self, incarnation: int, first_step: int = 0, last_step: int = 2**62) -> Iterator[LedgerCommit]:
        """What an incarnation folded, in order of its steps; groups in feed order over all shards."""
        shards = [reader.commits(incarnation, first_step, last_step) for reader in self._shards(incarnation)]
        if len(shards) == 1:
            yield from shards[0]
            return
        waiting = [next(shard, None) for shard in shards]
        while steps := [commit.step for commit in waiting if commit is not None]:
            step = min(steps)
            found = [commit for commit in waiting if commit is not None and commit.step == step]
            if len(found) == len(shards):
                yield _joined(found)
            waiting = [
                next(shard, None) if commit is not None and commit.step == step else commit
                for shard, commit in zip(shards, waiting, strict=True)
            ]

    def folded(
        self, steps: tuple[int, int, int], group: str, fold: str, places: Sequence[int] | None = None
    ) -> list[Row]:
        rows = [row for reader in self._readers for row in reader.folded(steps, group, fold, places)]
        return sorted(rows, key=lambda row: row[:3])

    def unfolded(self, incarnation: int) -> list[tuple[ScoredGroup, int]]:
        groups = [entry for reader in self._readers for entry in reader.unfolded(incarnation)]
        return sorted(groups, key=lambda entry: (entry[0].sequence, entry[0].group_id))

    def counts(self, incarnation: int, last_step: int = 2**62) -> Counts:
        return sum((reader.counts(incarnation, last_step) for reader in self._readers), Counts())

    def missing_commits(self, incarnation: int) -> dict[Path, list[tuple[Any, ...]]]:
        """By shard, (step, policy_version, kl, log_ratio) of commits that only other shards hold: a crash came in between."""
        query = "SELECT step, policy_version, kl, log_ratio FROM commits WHERE incarnation = ? ORDER BY step"
        held = {reader.directory: reader.query(query, (incarnation,)) for reader in self._shards(incarnation)}
        every = {commit[0]: commit for commits in held.values() for commit in commits}
        return {
            directory: [every[step] for step in sorted(every.keys() - {commit[0] for commit in commits})]
            for directory, commits in held.items()
        }

    def _shards(self, incarnation: int) -> list[LedgerReader]:
        """Those that an incarnation has written to."""
        return [reader for reader in self._readers if incarnation in reader.incarnations()]

    def _complete(self, incarnation: int) -> set[int]:
        query = "SELECT step FROM commits WHERE incarnation = ?"
        held = [{step for (step,) in reader.query(query, (incarnation,))} for reader in self._shards(incarnation)]
        return set.intersection(*held) if held else set()


def _joined(parts: Sequence[LedgerCommit]) -> LedgerCommit:
    """One commit of the parts that shards hold."""
    keys = [key for part in parts for key in part.keys]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    batches = [part.committed for part in parts]
    width = max(batch.rewards.shape[1] for batch in batches)

    def wide(columns: Sequence[np.ndarray]) -> np.ndarray:
        filled = [np.pad(column, ((0, 0), (0, width - column.shape[1])), constant_values=np.nan) for column in columns]
        return np.concatenate(filled)[order]

    prompts = [prompt for batch in batches for prompt in batch.prompts]
    committed = CommittedRewards(
        clusters=np.concatenate([batch.clusters for batch in batches])[order],
        rewards=wide([batch.rewards for batch in batches]),
        prompts=tuple(prompts[row] for row in order),
        policy_version=batches[0].policy_version,
        move=batches[0].move,
        lengths=wide([batch.lengths for batch in batches if batch.lengths is not None]),
    )
    return LedgerCommit(parts[0].incarnation, parts[0].step, committed, tuple(keys[row] for row in order))


def last_incarnation(directory: Path) -> int:
    """The newest incarnation of the ledgers in a directory; -1 where there is none or nothing in them."""
    if not ledger_directories(directory):
        return -1
    reader = RunLedger(directory)
    try:
        return reader.last_incarnation()
    finally:
        reader.close()

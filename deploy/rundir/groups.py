"""The groups of a run, asked of its ledger by SQL: searched and counted by what they are, newest first.

The ledger is open only while it is asked something: its writer makes a closed part one whole file once nobody reads it.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moments_service.ledger import FoldedGroup, LedgerReader
from moments_service.ledger.parts import part_paths
from moments_service.ledger.reader import GroupKey
from moments_service.ledger.schema import Row, open_for_reading
from moments_service.messages.groups import Transcript

PLACE = "incarnation, step, sequence, group_id"
NEWEST_FIRST = "ORDER BY incarnation DESC, step DESC, sequence DESC, group_id DESC"
QUERY_S = 20.0
"""What one question may take before it is given up."""
_KEPT_ANSWERS = 4096
_TELLING = 3
"""Characters of an id from which on it leaves less than anything else but a step."""


class Place(NamedTuple):
    """Where a group stands. Newer ones are greater."""

    incarnation: int
    step: int
    sequence: int
    group_id: str

    @classmethod
    def of(cls, group: FoldedGroup) -> "Place":
        """Where a group stands that was folded in."""
        return cls(group.incarnation, group.step, group.group.sequence, group.group.group_id)

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Read what `str` wrote. Raises ValueError."""
        incarnation, step, sequence, group_id = text.split(".", 3)
        return cls(int(incarnation), int(step), int(sequence), group_id)

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.step}.{self.sequence}.{self.group_id}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look for; None and "" are for anything."""

    id_prefix: str = ""
    cluster: int | None = None
    step: int | None = None
    source: str = ""
    outcome: str = ""
    """A name of an `Outcome`, or `rescued`."""

    def terms(self, incarnations: Sequence[int], before: Place | None) -> tuple[str, tuple[Any, ...]]:
        """A WHERE clause over `folds` and its values.

        Of the terms only the first may choose the index (a `+` keeps the others from it): it is the one that leaves least.
        """
        # Of all texts that begin so, none is greater than the one with the last of all characters behind it.
        by_id = "{}group_id BETWEEN ? AND ?", (self.id_prefix, self.id_prefix + "\U0010ffff")
        starts = ",".join(map(str, incarnations))
        terms: list[tuple[str, tuple[Any, ...]]] = []
        if self.step is not None:
            terms.append((f"incarnation IN ({starts}) AND step = ?", (self.step,)))
        if len(self.id_prefix) >= _TELLING:
            terms.append(by_id)
        if self.cluster is not None:
            terms.append(("{}cluster = ?", (self.cluster,)))
        if self.source:
            terms.append(("{}source = ?", (self.source,)))
        if self.outcome == "rescued":
            terms.append(("{}rescued = 1 AND rescued", ()))
        elif self.outcome:
            terms.append(("{}outcome = ?", (self.outcome,)))
        if 0 < len(self.id_prefix) < _TELLING:
            terms.append(by_id)
        in_order = not terms or (terms[0] != by_id and self.step is None)
        if before is not None:
            terms.append((f"({'' if in_order else '+'}{PLACE}) < (?, ?, ?, ?)", tuple(before)))
        clause = " AND ".join(term.format("+" if number else "") for number, (term, _) in enumerate(terms))
        return f"WHERE {clause}" if clause else "", tuple(value for _, values in terms for value in values)


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One start of a run."""

    number: int
    after_step: int
    """The last step of the earlier ones that it goes on from; -1 for none."""
    first_step: int | None
    """Of its commits; None while it has none."""
    last_step: int | None
    policy_version: int | None
    """What its last commit led to."""


@dataclass(frozen=True, slots=True)
class ClusterHistory:
    """How a cluster's groups went, as means over equal spans of steps. Arrays [spans]; NaN where nothing is known."""

    steps: npt.NDArray[np.int64]
    """The last one of each span."""
    reward: npt.NDArray[np.float64]
    trust: npt.NDArray[np.float64]
    """In history, of the groups that were trained on."""


class RunGroups:
    """The groups of one run, read-only. Holds nothing open; safe from several threads."""

    def __init__(self, moments: Path) -> None:
        """moments: directory of the ledger. Raises FileNotFoundError if there is none."""
        with LedgerReader(moments):
            self._directory = moments

    def incarnations(self) -> list[Incarnation]:
        """Every start of the run, oldest first."""
        with self._asking() as ledger:
            return [
                Incarnation(number, after, *_ends(ledger, number))
                for number, after in sorted(ledger.incarnations().items())
            ]

    def search(self, wanted: Wanted, before: Place | None = None, limit: int = 2**62) -> list[Place]:
        """The newest groups that fit, at most `limit`, older than `before`."""
        with self._asking() as ledger:
            clause, values = wanted.terms(sorted(ledger.incarnations()), before)
            rows = ledger.newest(f"SELECT {PLACE} FROM folds {clause} {NEWEST_FIRST}", values, limit)
        return [Place(*row) for row in rows]

    def count(self, wanted: Wanted) -> int:
        """How many groups fit."""
        with self._asking() as ledger:
            clause, values = wanted.terms(sorted(ledger.incarnations()), None)
            return sum(count for (count,) in _summed(ledger, f"SELECT COUNT(*) FROM folds {clause}", values))

    def folded(self, places: Sequence[Place]) -> list[FoldedGroup]:
        """What the ledger has of these groups, in their order."""
        with self._asking() as ledger:
            rows = ledger.at(places)
        found = {(row.incarnation, row.step, row.group.sequence, row.group.group_id): row for row in rows}
        return [found[place] for place in places]

    def find(self, group_id: str, incarnation: int | None = None) -> FoldedGroup | None:
        """A group by its whole id; with step -1 if no commit folded it in yet. incarnation: None for the newest."""
        one = "" if incarnation is None else f"AND incarnation = {incarnation}"
        with self._asking() as ledger:
            newest = f"SELECT {PLACE} FROM folds WHERE group_id = ? {one} {NEWEST_FIRST}"
            if places := ledger.newest(newest, (group_id,), limit=1):
                return ledger.at([places[0]])[0]
            waiting = [entry for entry in ledger.find(group_id) if incarnation in (None, entry[0])]
        if not waiting:
            return None
        number, group, cluster, _ = waiting[-1]
        return FoldedGroup(number, -1, group, cluster, advantages=None, baseline=None, scale=None, weight=None)

    def texts(self, group: FoldedGroup) -> tuple[Transcript | None, bool]:
        """The texts of a group, None where there are none; and whether they were kept once, and dropped later."""
        key = _key(group)
        with self._asking() as ledger:
            texts = ledger.transcript(*key)
            return texts, texts is None and ledger.texts_were_dropped(*key)

    def parts(self, group: FoldedGroup) -> tuple[dict[str, float] | None, ...] | None:
        """What the rewards of a group are made of; None where its verifier said nothing of it."""
        return self.parts_of([group])[0]

    def parts_of(self, groups: Sequence[FoldedGroup]) -> list[tuple[dict[str, float] | None, ...] | None]:
        """The same of many groups, in their order."""
        keys = [_key(group) for group in groups]
        with self._asking() as ledger:
            found = ledger.reward_parts(keys)
        return [found.get(key) for key in keys]

    def texts_of(self, groups: Sequence[FoldedGroup]) -> list[Transcript | None]:
        """The texts of many groups, in their order; None where they were not kept."""
        keys = [_key(group) for group in groups]
        with self._asking() as ledger:
            found = ledger.transcripts(keys)
        return [found.get(key) for key in keys]

    def saying(self, groups: Sequence[Place], text: str) -> list[Place]:
        """Those of these groups whose prompt, completions or errors say this, whatever the case of letters; nothing else is read."""
        with self._asking() as ledger:
            said = ledger.saying([(one.incarnation, one.sequence, one.group_id) for one in groups], text)
        return [one for one in groups if (one.incarnation, one.sequence, one.group_id) in said]

    def prompts(self, cluster: int, groups: int, tried: int, most: int) -> list[tuple[str, str]]:
        """(source, prompt) of up to `most` different prompts whose texts were kept.

        Looks at the newest groups of a cluster, so many of them, and for the texts of `tried` prompts.
        """
        newest = f"SELECT {PLACE}, source FROM folds WHERE cluster = ? {NEWEST_FIRST}"
        found: list[tuple[str, str]] = []
        with self._asking() as ledger:
            rows: dict[str, Row] = {}
            for row in ledger.newest(newest, (cluster,), groups):
                rows.setdefault(row[3].rsplit(":", 3)[0], row)
            for incarnation, _, sequence, group_id, source in list(rows.values())[:tried]:
                if len(found) < most and (texts := ledger.transcript(incarnation, sequence, group_id)) is not None:
                    found.append((source, texts.prompt))
        return found

    def sources(self) -> list[str]:
        """Every source that a group came from."""
        with self._asking() as ledger:
            return sorted({source for (source,) in _summed(ledger, "SELECT DISTINCT source FROM folds")})

    def sources_of_clusters(self) -> dict[int, Counter[str]]:
        """How many groups of each source every cluster had."""
        found: dict[int, Counter[str]] = defaultdict(Counter)
        with self._asking() as ledger:
            query = "SELECT cluster, source, COUNT(*) FROM folds GROUP BY cluster, source"
            for cluster, source, count in _summed(ledger, query):
                found[cluster][source] += count
        return found

    def history(self, cluster: int, spans: int) -> ClusterHistory:
        """How a cluster's groups went, over at most `spans` spans of steps."""
        last = max((one.last_step for one in self.incarnations() if one.last_step is not None), default=0)
        # A power of two, from step 0 on: what a closed part says of a span stays the same while the run goes on.
        width = 1 << max(0, (-(-(last + 1) // spans) - 1).bit_length())
        sums = np.zeros((last // width + 1, 4))
        query = (
            "SELECT step / ?, TOTAL(reward), COUNT(reward), TOTAL(weight), COUNT(weight) FROM folds "
            "WHERE cluster = ? AND step <= ? GROUP BY 1"
        )
        with self._asking() as ledger:
            for span, *row in _summed(ledger, query, (width, cluster, len(sums) * width - 1)):
                sums[span] += row
        filled = np.flatnonzero(sums[:, 1] + sums[:, 3])
        reward, rewards, trust, trusts = sums[filled].T
        with np.errstate(invalid="ignore"):
            return ClusterHistory(np.minimum((filled + 1) * width - 1, last), reward / rewards, trust / trusts)

    def _asking(self) -> LedgerReader:
        return LedgerReader(self._directory, QUERY_S)


def _key(group: FoldedGroup) -> GroupKey:
    return group.incarnation, group.group.sequence, group.group.group_id


def _ends(ledger: LedgerReader, incarnation: int) -> tuple[int | None, int | None, int | None]:
    """First and last step of an incarnation's commits, and the policy's version after the last; None where there is none."""
    last = "SELECT step, policy_version FROM commits WHERE incarnation = ? ORDER BY step DESC"
    newest = ledger.newest(last, (incarnation,), limit=1)
    if not newest:
        return None, None, None
    lows = ledger.query("SELECT MIN(step) FROM commits WHERE incarnation = ?", (incarnation,))
    return min(low for (low,) in lows if low is not None), *newest[0]


def _summed(ledger: LedgerReader, sql: str, values: tuple[Any, ...] = ()) -> Iterator[Row]:
    """Rows of a SELECT that reads much and gives little, of every part; what a part said is kept while it does not grow."""
    seals = ledger.query("SELECT MAX(seal), checksum FROM seals")
    # A part that was begun in between is left for the next time.
    for path, seal in zip(part_paths(ledger.directory), seals, strict=False):
        yield from _of_part(path, seal, sql, values)


@lru_cache(_KEPT_ANSWERS)
def _of_part(path: Path, seal: Row, sql: str, values: tuple[Any, ...]) -> list[Row]:
    """What a part said when this was its last seal."""
    with closing(open_for_reading(path, time.monotonic() + QUERY_S)) as connection:
        return connection.execute(sql, values).fetchall()

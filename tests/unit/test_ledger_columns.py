"""What groups are searched by stands in columns of the ledger, and says the same as the rewards beside it."""

import json
from pathlib import Path

import numpy as np
import pytest

from moments_service.ledger import Ledger, LedgerLimits, LedgerReader
from moments_service.ledger.outcomes import Outcome, outcomes
from moments_service.ledger.parts import part_paths
from moments_service.ledger.schema import INDEXES
from moments_service.messages.batch import Batch
from moments_service.messages.groups import ScoredGroup
from moments_service.messages.table import GroupTable, padded
from tests.unit.test_ledger import NOTHING, header
from tests.unit.test_ledger_parts import SMALL, add

pytestmark = pytest.mark.unit

_NEWEST = "ORDER BY incarnation DESC, step DESC, sequence DESC, group_id DESC"


Blended = tuple[ScoredGroup, tuple[float | None, ...], float]


def blended(group: ScoredGroup, *advantages: float | None, baseline: float = 0.5) -> Blended:
    return group, advantages, baseline


async def commit(ledger: Ledger, step: int, *groups: Blended, closed: tuple[ScoredGroup, ...] = ()) -> None:
    headers, advantages, baselines = zip(*groups, strict=True)
    table, count = GroupTable.of(headers), len(groups)
    values = padded(advantages, table.rewards.shape[1], np.nan)
    numbers = (np.array(baselines), np.full(count, 0.25), np.full(count, 0.125))
    batch = Batch(step, table, ("payload",) * count, np.full(count, 2), values, *numbers)
    left = GroupTable.of(closed), np.full(len(closed), 3)
    await ledger.append_commit(batch, step + 1, None, *(left if closed else NOTHING))


async def test_every_group_says_how_it_ended(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, incarnation=0)
    rewards: list[tuple[float | None, ...]] = [
        (1.0, 0.0), (1.0, 1.0, 1.0), (0.5, None), (0.0, 0.0), (None, None), (1.0, 0.0),
    ]  # fmt: skip
    groups = [header(at, values) for at, values in enumerate(rewards)]
    await add(ledger, *groups)
    trained = [
        blended(groups[0], 1.0, -1.0), blended(groups[1], 0.3, 0.3, 0.3), blended(groups[2], 1e-9, None),
        blended(groups[3], -0.2, -0.2),
    ]  # fmt: skip
    await commit(ledger, 0, *trained, closed=(groups[4], groups[5]))
    await ledger.close()
    reader = LedgerReader(tmp_path)
    assert reader.query("SELECT outcome, cluster, source, reward, signal, rescued, weight FROM folds ORDER BY sequence") == [
        ("mixed", 2, "sums", 0.5, 1, 0, 0.125),
        ("solved", 2, "sums", 1.0, 1, 1, 0.125),
        ("unsolved", 2, "sums", 0.5, 0, 0, 0.125),
        ("unsolved", 2, "sums", 0.0, 1, 1, 0.125),
        ("error", 3, "sums", None, 0, 0, None),
        ("lost", 3, "sums", 0.5, 0, 0, None),
    ]  # fmt: skip
    assert reader.query("SELECT size, failed, reward, tokens FROM groups ORDER BY sequence") == [
        (2, 0, 0.5, 6), (3, 0, 1.0, 9), (2, 1, 0.5, 6), (2, 0, 0.0, 6), (2, 2, None, 6), (2, 0, 0.5, 6),
    ]  # fmt: skip
    reader.close()


async def test_a_search_over_many_parts_finds_the_newest_first_by_an_index(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, incarnation=0, limits=LedgerLimits(part_bytes=SMALL.part_bytes))
    for step in range(40):
        group = header(step, ((1.0, 0.0), (1.0, 1.0), (0.0, 0.0))[step % 3])
        await add(ledger, group)
        await commit(ledger, step, blended(group, 0.1, 0.1))
    *closed, newest = part_paths(tmp_path)
    reader = LedgerReader(tmp_path)
    query = f"SELECT step FROM folds WHERE outcome = ? {_NEWEST}"
    assert reader.newest(query, ("solved",), limit=5) == [(37,), (34,), (31,), (28,), (25,)]
    assert reader.newest(query, ("solved",)) == [(step,) for step in range(37, 0, -3)]
    names = "SELECT name FROM sqlite_master WHERE type = 'index'"
    assert len(closed) > 2 and set(reader.query(names)) == {(name,) for name in INDEXES}
    assert reader._ask(newest, names, ()) == [], "the open part has no index that writing would pay for"
    (plan,) = reader._ask(closed[0], f"EXPLAIN QUERY PLAN {query} LIMIT 5", ("solved",))
    assert "COVERING INDEX folds_by_outcome" in plan[3]
    reader.close()
    await ledger.close()


async def test_a_part_that_is_written_to_again_has_no_indexes_until_it_is_closed(tmp_path: Path) -> None:
    names = "SELECT name FROM sqlite_master WHERE type = 'index'"
    for incarnation in range(2):
        ledger = Ledger(tmp_path, incarnation)
        reader = LedgerReader(tmp_path)
        assert reader.query(names) == []
        reader.close()
        await add(ledger, header(incarnation))
        await commit(ledger, 0, blended(header(incarnation), 0.1, 0.1))
        await ledger.close()
    reader = LedgerReader(tmp_path)
    assert len(reader.query(names)) == len(INDEXES)
    reader.close()


async def test_a_baseline_of_minus_zero_is_no_damage(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, incarnation=0)
    await add(ledger, header(0, (-0.0, -0.0)))
    await commit(ledger, 0, blended(header(0, (-0.0, -0.0)), 0.0, 0.0, baseline=-0.0))
    await ledger.close()
    await Ledger(tmp_path, incarnation=1).close()


def test_outcomes_of_ragged_groups() -> None:
    nan = np.nan
    rewards = np.array([[1.0, nan], [0.5, nan], [nan, nan], [1.0, 0.99], [2.0, 2.0]])
    assert outcomes(rewards, closed=False) == ["solved", "unsolved", "error", "mixed", "solved"]
    assert outcomes(rewards, np.array([1, 1, 1, 1, 0], dtype=np.bool_)) == [
        "lost", "lost", "error", "lost", "solved",
    ]  # fmt: skip
    assert json.dumps(Outcome.SOLVED) == '"solved"'

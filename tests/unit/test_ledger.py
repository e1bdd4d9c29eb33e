"""The ledger: what a crash, a torn end and damage leave of it, and what it says afterwards."""

import asyncio
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moments_service.ledger import Ledger, LedgerDamagedError, LedgerReader
from moments_service.ledger.schema import json_rows
from moments_service.ledger.seals import Seal, lost_end, verify
from moments_service.messages.batch import Batch
from moments_service.messages.groups import PolicyMove, ScoredGroup, Transcript
from moments_service.messages.table import GroupTable

pytestmark = pytest.mark.unit


NOTHING = GroupTable.of([]), np.zeros(0, dtype=np.int64)
"""What a commit takes in of groups that were not trained on: none."""


def header(sequence: int, rewards: tuple[float | None, ...] = (1.0, 0.0)) -> ScoredGroup:
    return ScoredGroup(
        group_id=f"prompt{sequence}:0:0:0",
        prompt_id=f"prompt{sequence}",
        source="sums",
        sequence=sequence,
        rewards=rewards,
        errors=tuple(None if reward is not None else "verifier: 'crashed'" for reward in rewards),
        lengths=(3,) * len(rewards),
        truncated=(False,) * len(rewards),
        policy_versions=(0, 1),
    )


def batch(step: int, *groups: ScoredGroup) -> Batch:
    table = GroupTable.of(groups)
    made = [np.full(len(groups), value) for value in (0.5, 0.25, 0.125)]
    advantages = np.where(table.rewards == 0.0, 0.0, 0.1 + table.rewards)
    clusters = np.full(len(groups), 2)
    return Batch(step, table, ("payload",) * len(groups), clusters, advantages, *made)


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def read(path: Path) -> bytearray:
    return bytearray(path.read_bytes())


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


async def written(directory: Path, steps: int = 4) -> Path:
    """A ledger of one part, `steps` steps with one group each. Returns the path of its part.

    Beside it, in `unfinished`, the same with all of it still in the write-ahead log.
    """
    ledger = Ledger(directory, incarnation=0)
    for step in range(steps):
        await ledger.append(GroupTable.of([header(step)]), np.array([2]), [Transcript("1+1=", ("2", "3"))])
        await ledger.append_commit(batch(step, header(step)), step + 1, PolicyMove(0.5, 0.25), *NOTHING)
    (copy := directory / "unfinished").mkdir()
    for path in (ledger.path, log_of(ledger.path)):
        shutil.copy(path, copy)
    await ledger.close()
    return ledger.path


async def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, incarnation=0)
    groups = [header(0), header(1, (None, 1.0, 0.1)), header(2, (None, None))]
    await ledger.append(GroupTable.of(groups), np.array([2, 0, 1]))
    await ledger.append_losses([(2, groups[2].group_id)])
    closed = GroupTable.of(groups[2:]), np.array([1])
    await ledger.append_commit(batch(0, *groups[:2]), 7, PolicyMove(0.5, 0.25), *closed)
    await ledger.close()
    reader = LedgerReader(tmp_path)
    (commit,) = reader.commits(0)
    assert commit.step == 0 and commit.committed.policy_version == 7
    assert commit.committed.move == PolicyMove(0.5, 0.25)
    assert commit.committed.clusters.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(
        commit.committed.rewards, [[1.0, 0.0, np.nan], [np.nan, 1.0, 0.1], [np.nan, np.nan, np.nan]]
    )
    folded = reader.batch(0, 0)
    assert [entry.group for entry in folded[:2]] == groups[:2]
    assert folded[1].advantages == (None, 1.1, 0.1 + 0.1)
    assert folded[2].advantages is None and folded[2].baseline is None
    assert reader.find(groups[1].group_id) == [(0, groups[1], 0, 0)]
    reader.close()


async def test_every_transaction_is_sealed(tmp_path: Path) -> None:
    path = await written(tmp_path)
    with sqlite3.connect(path) as connection:
        report = verify(connection, path, Seal())
        # The beginning of the part and of the incarnation, then a group and a commit each step.
        assert report.seals == report.last.number + 1 == 2 + 2 * 4
        numbers = connection.execute("SELECT number_of_rows, texts = '' FROM seals").fetchall()
        # Texts are counted apart.
        assert numbers == [(1, 1), (1, 1), *[(1, 0), (2, 1)] * 4]


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        ("UPDATE groups SET rewards = '[0.0, 0.0]' WHERE sequence = 1", "groups prompt1:0:0:0"),
        ("UPDATE folds SET weight = weight + 1e-16 WHERE step = 1", "the commit of step 1"),
        ("DELETE FROM transcripts WHERE sequence = 1", "groups prompt1:0:0:0"),
        ("DELETE FROM commits WHERE step = 1", "what is left of it holds nothing"),
        ("DELETE FROM seals WHERE seal = 3", "its seal is missing"),
    ],
)
async def test_damage_in_the_middle_is_refused_with_its_place(tmp_path: Path, damage: str, place: str) -> None:
    path = await written(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute(damage)
    with pytest.raises(LedgerDamagedError, match=place):
        Ledger(tmp_path, incarnation=0)


async def test_a_torn_end_is_cut_and_what_stands_before_it_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = await written(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM folds WHERE step = 3")
    ledger = Ledger(tmp_path, incarnation=0)
    assert "cut an unfinished write" in caplog.text
    reader = LedgerReader(tmp_path)
    assert [commit.step for commit in reader.commits(0)] == [0, 1, 2]
    assert [group.sequence for group, _ in reader.unfolded(0)] == [3]
    reader.close()
    await ledger.append_commit(batch(3, header(3)), 4, None, *NOTHING)
    assert verify(ledger.connection, path, Seal()).cut == 0
    await ledger.close()


async def test_a_page_of_rubbish_is_refused(tmp_path: Path) -> None:
    path = await written(tmp_path, steps=40)
    data = read(path)
    data[4096:8192] = b"\xff" * 4096
    write(path, data)
    with pytest.raises(LedgerDamagedError, match=r"ledger-000000\.sqlite is damaged"):
        Ledger(tmp_path, incarnation=0)


async def test_a_write_ahead_log_cut_anywhere_keeps_every_finished_transaction_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "unfinished" / (await written(tmp_path)).name
    log = read(log_of(path))
    seen = set()
    for cut in range(len(log), 32, -1500):
        (directory := tmp_path / f"cut{cut}").mkdir()
        shutil.copy(path, directory)
        write(log_of(directory / path.name), log[:cut])
        ledger = Ledger(directory, incarnation=0)
        steps = [commit.step for commit in LedgerReader(directory).commits(0)]
        assert steps == list(range(len(steps)))
        seen.add(len(steps))
        await ledger.close()
    assert seen >= {4, 3, 2, 1}


async def test_a_changed_bit_in_the_write_ahead_log_cannot_hide_what_was_seen_on_the_disk(tmp_path: Path) -> None:
    """SQLite drops everything behind a frame that does not check, without a word."""
    ledger = Ledger(tmp_path, incarnation=0)
    ends = []
    for step in range(4):
        await ledger.append(GroupTable.of([header(step)]), np.array([2]))
        ends.append(ledger.end)
    (copy := tmp_path / "copy").mkdir()
    for path in (ledger.path, log_of(ledger.path)):
        shutil.copy(path, copy)
    await ledger.close()
    path = copy / ledger.path.name
    log = read(log_of(path))
    log[len(log) * 3 // 4] ^= 1
    write(log_of(path), log)
    assert lost_end(copy, [path], ends[0]) is None
    lost = lost_end(copy, [path], ends[3])
    assert lost is not None and re.search(r"ends with transaction \d, and number 5 was on the disk", lost)


def test_a_killed_writer_leaves_what_it_acknowledged(tmp_path: Path) -> None:
    code = f"""
import asyncio, os, sys
import numpy as np
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.unit.test_ledger import GroupTable, Ledger, Path, header
async def main():
    ledger = Ledger(Path({str(tmp_path)!r}), incarnation=0)
    for n in range(1000):
        await ledger.append(GroupTable.of([header(n)]), np.array([0]))
        print(n, flush=True)
        if n == 50:
            os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    acknowledged = {int(line) for line in done.stdout.split()}
    Ledger(tmp_path, incarnation=0)
    assert {group.sequence for group, _ in LedgerReader(tmp_path).unfolded(0)} == acknowledged == set(range(51))


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), OverflowError("int too large")])
async def test_who_waits_hears_of_a_write_that_failed_and_the_next_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    ledger = Ledger(tmp_path, incarnation=0)

    def failing(*_: object) -> Seal:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr("moments_service.ledger.writer.write_transaction", failing)
        with pytest.raises(RuntimeError, match=f"cannot be written: {error}"):
            await asyncio.wait_for(ledger.append(GroupTable.of([header(0)]), np.array([2])), 10)
    await ledger.append(GroupTable.of([header(1)]), np.array([2]))
    await ledger.close()
    reader = LedgerReader(tmp_path)
    assert reader.query("SELECT sequence FROM groups") == [(1,)]
    reader.close()


async def test_a_lineage_leaves_out_what_came_after_the_checkpoints(tmp_path: Path) -> None:
    for incarnation, after_step in ((0, -1), (1, 5), (2, 3), (3, 9)):
        await Ledger(tmp_path, incarnation, after_step).close()
    reader = LedgerReader(tmp_path)
    last = 2**62
    assert reader.lineage(0) == [(0, 0, last)]
    assert reader.lineage(1) == [(0, 0, 5), (1, 6, last)]
    assert reader.lineage(2) == [(0, 0, 3), (2, 4, last)]
    assert reader.lineage(3) == [(0, 0, 3), (2, 4, 9), (3, 10, last)]


@settings(max_examples=50)
@given(st.lists(st.lists(st.one_of(st.just(float("nan")), st.floats(-5, 5)), max_size=4), max_size=5))
def test_rows_of_numbers_become_lists_of_json(rows: list[list[float]]) -> None:
    import json

    width = max(map(len, rows), default=0)
    values = np.full((len(rows), width), np.nan)
    for i, row in enumerate(rows):
        values[i, : len(row)] = row
    texts = json_rows(values, np.array([len(row) for row in rows], dtype=np.int64))
    assert [json.loads(text) for text in texts] == [[None if v != v else v for v in row] for row in rows]

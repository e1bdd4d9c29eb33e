"""A ledger in several files: it says what one file would, whatever kills its writer, and old texts may go."""

import asyncio
import hashlib
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moments_service.ledger import Ledger, LedgerDamagedError, LedgerLimits, LedgerReader, seals
from moments_service.ledger.closed import ClosedParts
from moments_service.ledger.parts import is_finished, part_path, part_paths
from moments_service.ledger.seals import check_parts
from moments_service.messages.groups import PolicyMove, ScoredGroup, Transcript
from moments_service.messages.table import GroupTable
from tests.unit.test_ledger import batch, header

pytestmark = pytest.mark.unit

SMALL = LedgerLimits(part_bytes=64 * 2**10)
"""An empty part has 32 KiB."""
TEXT = Transcript("what is 1 + 1? " * 40, ("2 " * 400, "3 " * 400))


async def add(ledger: Ledger, *groups: ScoredGroup) -> None:
    await ledger.append(GroupTable.of(groups), np.full(len(groups), 2), [TEXT] * len(groups))


async def write_run(directory: Path, limits: LedgerLimits, steps: int = 30) -> None:
    """Two incarnations of many steps; of every three groups the last is folded in six steps later, or is lost, or never."""
    for incarnation, first, last in ((0, 0, steps), (1, steps // 2, steps)):
        ledger = Ledger(directory, incarnation, first - 1, limits)
        for step in range(first, last):
            groups = [header(3 * step + number, (1.0, None, 0.5)) for number in range(3)]
            await add(ledger, *groups)
            late = [header(3 * step - 16)] if step % 3 and step - 6 >= first else []
            if step % 4 == 0:
                await ledger.append_losses([(groups[2].sequence, groups[2].group_id)])
            closed = GroupTable.of(late), np.full(len(late), 2)
            await ledger.append_commit(batch(step, *groups[:2]), step + 1, PolicyMove(0.5, 0.25), *closed)
        await ledger.close()


def left(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix != ".b2")


def waiting(directory: Path) -> set[int]:
    reader = LedgerReader(directory)
    try:
        return {group.sequence for group, _ in reader.unfolded(0)}
    finally:
        reader.close()


def everything(directory: Path) -> object:
    reader = LedgerReader(directory)
    try:
        return [
            reader.incarnations(),
            reader.lineage(1),
            *(
                (
                    [repr(commit) for commit in reader.commits(incarnation)],
                    [reader.batch(incarnation, step) for step in range(30)],
                    reader.unfolded(incarnation),
                    reader.counts(incarnation),
                    reader.counts(incarnation, last_step=20),
                )
                for incarnation in (0, 1)
            ),
            [reader.find(header(sequence).group_id) for sequence in range(0, 90, 7)],
            [reader.transcript(1, sequence, header(sequence).group_id) for sequence in range(45, 90, 7)],
        ]
    finally:
        reader.close()


async def test_groups_are_found_by_what_they_say_in_whatever_part(tmp_path: Path) -> None:
    await write_run(tmp_path, SMALL)
    reader = LedgerReader(tmp_path)
    try:
        keys = [(1, sequence, header(sequence).group_id) for sequence in range(45, 90)]
        texts = reader.transcripts(keys)
        some = {key: said for key, said in texts.items() if said.completions}
        assert len(some) > 10
        key, said = next(iter(some.items()))
        for text in (said.prompt, said.completions[-1].upper(), "CRASHED", "nobody says this"):
            wanted = text.casefold()
            expected = {
                one
                for one in keys
                if (kept := texts.get(one))
                and any(wanted in part.casefold() for part in (kept.prompt, *kept.completions))
            }
            errors = {
                one for one in keys for row in reader.find(one[2]) if any(wanted in (e or "") for e in row[1].errors)
            }
            assert reader.saying(keys, text) == expected | errors
        assert key in reader.saying(keys, said.prompt) and reader.saying([], "") == set()
    finally:
        reader.close()


async def test_many_parts_say_what_one_would(tmp_path: Path) -> None:
    (one := tmp_path / "one").mkdir()
    (many := tmp_path / "many").mkdir()
    await write_run(one, LedgerLimits())
    await write_run(many, SMALL)
    assert len(part_paths(one)) == 1 and len(part_paths(many)) > 4
    assert everything(many) == everything(one)
    apart = "SELECT 1 FROM folds LEFT JOIN groups USING (incarnation, group_id) WHERE groups.cluster IS NULL"
    assert any(rows(path, apart) for path in part_paths(many)), "no group stands in another part than its fold"
    # Seals go on from part to part.
    assert check_parts(part_paths(many)).seals == check_parts(part_paths(one)).seals + len(part_paths(many)) - 1


async def test_a_closed_part_is_one_whole_read_only_file(tmp_path: Path) -> None:
    def whole(path: Path) -> bool:
        return is_finished(path) and not stat.S_IMODE(path.stat().st_mode) & 0o222

    await write_run(tmp_path, SMALL)
    assert left(tmp_path) == part_paths(tmp_path) and all(map(whole, part_paths(tmp_path)))
    ledger = Ledger(tmp_path, 1, limits=SMALL)
    assert list(map(whole, part_paths(tmp_path)))[-2:] == [True, False]
    await ledger.close()


async def test_rows_of_a_closed_part_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await write_run(tmp_path, SMALL)
    await Ledger(tmp_path, 1, limits=SMALL).close()
    report = check_parts(part_paths(tmp_path))
    checked = []
    monkeypatch.setattr(
        seals, "verify", lambda *given, real=seals.verify, **more: checked.append(given[1]) or real(*given, **more)
    )
    assert check_parts(part_paths(tmp_path), writing=True) == report
    assert checked == part_paths(tmp_path)[-1:]
    part_path(tmp_path, 1).with_suffix(".b2").unlink()
    assert check_parts(part_paths(tmp_path), writing=True) == report
    assert checked[1:] == [part_path(tmp_path, 1), part_paths(tmp_path)[-1]]
    # A person can ask too: b2sum --check ledger-000001.b2
    digest = hashlib.blake2b(part_path(tmp_path, 1).read_bytes()).hexdigest()
    assert part_path(tmp_path, 1).with_suffix(".b2").read_text() == f"{digest}  ledger-000001.sqlite\n"


async def test_a_part_that_somebody_reads_is_finished_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(tmp_path, 0, limits=SMALL)
    with sqlite3.connect(part_path(tmp_path, 0)) as person:
        person.execute("SELECT COUNT(*) FROM groups").fetchall()
        sequence = 0
        while len(part_paths(tmp_path)) < 3:
            await add(ledger, header(sequence := sequence + 1))
        await asyncio.sleep(0)
        assert ledger._tidying is not None
        await ledger._tidying
        assert not is_finished(part_path(tmp_path, 0))
        assert "ledger-000000.sqlite is open in another program" in caplog.text
    person.close()
    await ledger.close()
    await Ledger(tmp_path, 0, limits=SMALL).close()
    assert is_finished(part_path(tmp_path, 0))


async def test_a_group_is_recognised_whatever_part_it_stands_in(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 0, limits=SMALL)
    for sequence in range(60, 0, -1):
        await add(ledger, header(sequence))
    assert len(part_paths(tmp_path)) > 2
    asked = GroupTable.of([header(sequence) for sequence in range(70)])
    held = {header(sequence).group_id for sequence in range(1, 61)}
    assert ledger.held(asked) == held
    await ledger.close()
    again = Ledger(tmp_path, 0, limits=SMALL)
    assert again.held(asked) == held
    await again.close()
    other = Ledger(tmp_path, 1, limits=SMALL)
    assert other.held(asked) == set()
    await other.close()


async def test_where_no_next_part_can_be_begun_the_open_one_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    ledger = Ledger(tmp_path, 0, limits=SMALL)
    with monkeypatch.context() as patch:
        patch.setattr("moments_service.ledger.writer.begin_part", fail)
        for sequence in range(40):
            await add(ledger, header(sequence))
    assert len(part_paths(tmp_path)) == 1
    assert 1 <= caplog.text.count("No space left on device") < 20
    for sequence in range(40, 80):
        await add(ledger, header(sequence))
    await ledger.close()
    assert len(part_paths(tmp_path)) > 1
    assert waiting(tmp_path) == set(range(80))


INSTANTS = [
    ("moments_service.ledger.parts.put_file", "before"),
    ("moments_service.ledger.parts.put_file", "after"),
    ("moments_service.ledger.closed.finish_part", "before"),
    ("moments_service.ledger.closed.finish_part", "after"),
    ("moments_service.ledger.retention.put_file", "before"),
    ("moments_service.ledger.retention.put_file", "after"),
]


@pytest.mark.parametrize(("function", "instant"), INSTANTS)
def test_a_writer_killed_in_the_middle_of_a_rotation_leaves_what_it_acknowledged(
    tmp_path: Path, function: str, instant: str
) -> None:
    code = f"""
import asyncio, importlib, os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.unit.test_ledger_parts import Ledger, LedgerLimits, Path, SMALL, add, header
name, function = {function!r}.rsplit(".", 1)
module = importlib.import_module(name)
real, calls = getattr(module, function), 0
def deadly(*arguments):
    global calls
    calls += 1
    if calls == 3 and {instant!r} == "before":
        os.kill(os.getpid(), 9)
    done = real(*arguments)
    if calls == 3:
        os.kill(os.getpid(), 9)
    return done
setattr(module, function, deadly)
async def main():
    ledger = Ledger(Path({str(tmp_path)!r}), 0, limits=LedgerLimits(SMALL.part_bytes, texts_bytes=1))
    for n in range(1000):
        await add(ledger, header(n))
        print(n, flush=True)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    acknowledged = {int(line) for line in done.stdout.split()}
    assert len(part_paths(tmp_path)) >= 2
    asyncio.run(_goes_on(tmp_path, acknowledged))


async def _goes_on(directory: Path, acknowledged: set[int]) -> None:
    found = waiting(directory)  # whoever may only read can do so at once
    ledger = Ledger(directory, 0, limits=SMALL)
    # What was on its way when it died may have arrived.
    assert waiting(directory) == found and acknowledged <= found <= acknowledged | {max(acknowledged) + 1}
    assert ledger.held(GroupTable.of([header(sequence) for sequence in found])) == {header(n).group_id for n in found}
    more = range(max(found) + 1, max(found) + 40)
    for sequence in more:
        await add(ledger, header(sequence))
    await ledger.close()
    assert waiting(directory) == found | set(more)
    check_parts(part_paths(directory))
    assert all(is_finished(path) for path in part_paths(directory)[:-1])
    assert left(directory) == part_paths(directory)


def change(path: Path, sql: str) -> None:
    path.chmod(0o644)
    with sqlite3.connect(path) as connection:
        connection.execute(sql)
    connection.close()


@pytest.mark.parametrize(
    ("sql", "place"),
    [
        ("UPDATE groups SET rewards = '[1.0]' WHERE sequence % 7 = 0", "damaged in transaction"),
        ("DELETE FROM commits", "what is left of it holds groups|what is left of it holds nothing"),
        ("DELETE FROM transcripts", "damaged in transaction"),
        ("DELETE FROM seals WHERE seal = (SELECT MAX(seal) FROM seals)", "its seal is missing"),
        ("DELETE FROM parts", r"does not begin where part 1 ends.*: it says \[\]"),
    ],
)
async def test_damage_in_a_closed_part_is_refused_with_part_and_place(tmp_path: Path, sql: str, place: str) -> None:
    await write_run(tmp_path, SMALL)
    change(part_path(tmp_path, 2), sql)
    with pytest.raises(LedgerDamagedError, match=rf"ledger-000002\.sqlite .*({place})"):
        Ledger(tmp_path, 1, limits=SMALL)


async def test_the_end_of_a_closed_part_cannot_be_cut_off_unseen(tmp_path: Path) -> None:
    await write_run(tmp_path, SMALL)
    path = part_path(tmp_path, 1)
    path.chmod(0o644)
    with sqlite3.connect(path) as connection:
        (last,) = connection.execute("SELECT MAX(seal) FROM seals").fetchone()
        for table in ("groups", "transcripts", "losses", "folds", "commits", "incarnations", "seals"):
            connection.execute(f"DELETE FROM {table} WHERE seal = ?", (last,))
    connection.close()
    with pytest.raises(
        LedgerDamagedError, match=rf"ledger-000002\.sqlite does not begin where part 1 ends.*{last - 1}"
    ):
        Ledger(tmp_path, 1, limits=SMALL)


async def test_a_missing_or_a_foreign_part_is_refused(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    (other := tmp_path / "other").mkdir()
    await write_run(run, SMALL)
    await write_run(other, SMALL, steps=24)
    gone = part_path(run, 1).rename(tmp_path / "gone")
    for reads in (lambda: Ledger(run, 1), lambda: LedgerReader(run)):
        with pytest.raises(
            LedgerDamagedError, match=r"ledger-000001\.sqlite is missing, and ledger-000002\.sqlite is there"
        ):
            reads()
    shutil.copy(gone, part_path(run, 1))
    shutil.copy(gone, tmp_path / "again").replace(part_path(run, 2))
    with pytest.raises(LedgerDamagedError, match=r"ledger-000002\.sqlite"):
        Ledger(run, 1)


async def test_old_texts_are_gone_at_the_end_however_slow_the_disk_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if no part had been looked at before the last one was closed."""
    monkeypatch.setattr(ClosedParts, "tidy", lambda self: None)
    bound = 3 * SMALL.part_bytes
    await write_run(tmp_path, LedgerLimits(SMALL.part_bytes, texts_bytes=bound))
    holding = [path for path in part_paths(tmp_path) if rows(path, "SELECT 1 FROM transcripts LIMIT 1")]
    assert holding and sum(path.stat().st_size for path in holding) <= bound


async def test_old_texts_go_and_nothing_else_does(tmp_path: Path) -> None:
    (whole := tmp_path / "whole").mkdir()
    (bare := tmp_path / "bare").mkdir()
    await write_run(whole, SMALL)
    bound = 3 * SMALL.part_bytes
    await write_run(bare, LedgerLimits(SMALL.part_bytes, texts_bytes=bound))
    texts = [bool(rows(path, "SELECT 1 FROM transcripts LIMIT 1")) for path in part_paths(bare)]
    assert texts[:-1] == sorted(texts[:-1]) and not texts[0] and texts[-2]
    kept = [path for path, holds in zip(part_paths(bare)[:-1], texts, strict=False) if holds]
    assert sum(path.stat().st_size for path in kept) <= bound
    assert part_paths(bare)[0].stat().st_size < part_paths(whole)[0].stat().st_size
    for table in ("parts", "groups", "losses", "folds", "commits", "incarnations"):
        query = f"SELECT * FROM {table}"
        assert [rows(path, query) for path in part_paths(bare)] == [rows(path, query) for path in part_paths(whole)]
    assert check_parts(part_paths(bare)) == check_parts(part_paths(whole))
    reader = LedgerReader(bare)
    first = (0, 0, header(0).group_id)
    assert reader.transcript(*first) is None and reader.texts_were_dropped(*first)
    newest = (1, 89, header(89).group_id)
    assert reader.transcript(*newest) is not None and not reader.texts_were_dropped(*newest)
    reader.close()
    change(part_path(bare, 0), "UPDATE groups SET cluster = 3 WHERE sequence = 4")
    with pytest.raises(LedgerDamagedError, match=r"ledger-000000\.sqlite is damaged in transaction"):
        Ledger(bare, 1)


async def test_a_damaged_part_keeps_its_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(tmp_path, 0, limits=LedgerLimits(SMALL.part_bytes, texts_bytes=3 * SMALL.part_bytes))
    sequence = 0
    while len(part_paths(tmp_path)) < 7:
        await add(ledger, header(sequence := sequence + 1))
        if len(part_paths(tmp_path)) == 2 and ledger._tidying is not None and "hurt" not in locals():
            await ledger._tidying
            hurt = part_path(tmp_path, 0)
            change(hurt, "DELETE FROM seals WHERE seal = 2")
    await ledger.close()
    assert "ledger-000000" in caplog.text and "stay as they are" in caplog.text
    assert rows(hurt, "SELECT 1 FROM transcripts LIMIT 1")


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()

"""What the dashboard's answers are made of: thinned series, the index of metrics, of groups, the map, shown text."""

import json
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.dashboard.cluster_map import projected, pushed_apart, spiral
from deploy.dashboard.shown_text import excerpt
from deploy.report.visible import visible
from deploy.rundir.groups import NEWEST_FIRST, PLACE, Incarnation, Place, RunGroups, Wanted
from deploy.rundir.layout import RunDirectory
from deploy.rundir.live_file import LiveFile
from deploy.rundir.metrics_index import MetricsIndex
from deploy.rundir.state import state_of
from deploy.rundir.thinning import Thinning, rounded
from moments_service.ledger import LedgerLimits, LedgerReader
from moments_service.ledger.parts import is_finished, part_paths
from moments_service.ledger.schema import create_indexes, create_tables, open_for_reading
from tests.made_runs import MadeRun

pytestmark = pytest.mark.unit

ALL = 60.0


@settings(deadline=None)
@given(
    values=st.lists(st.one_of(st.just(float("nan")), st.floats(-1e6, 1e6)), max_size=700),
    points=st.integers(2, 100),
)
def test_thinning_keeps_every_extreme_of_its_span(values: list[float], points: int) -> None:
    column = np.array(values, dtype=np.float64)
    thinning = Thinning(len(column), points)
    kept = thinning.extremes(column)
    assert len(kept) == len(thinning.places) <= max(points, 2)
    if len(column) and not np.isnan(column).all():
        assert np.nanmin(kept) == np.nanmin(column) and np.nanmax(kept) == np.nanmax(column)
    for start in range(0, len(column), thinning.width):
        span = column[start : start + thinning.width]
        inside = kept[(thinning.places >= start) & (thinning.places < start + thinning.width)]
        if not np.isnan(span).all():
            assert np.nanmin(inside) == np.nanmin(span) and np.nanmax(inside) == np.nanmax(span)


def test_a_short_series_stays_as_it_is() -> None:
    values = np.array([3.0, np.nan, 1.0])
    thinning = Thinning(3)
    assert thinning.places.tolist() == [0, 1, 2]
    assert rounded(thinning.extremes(values)) == [3.0, None, 1.0]


@settings(deadline=None)
@given(st.lists(st.floats(width=32), max_size=50))
def test_numbers_are_rounded_as_they_are_printed(values: list[float]) -> None:
    expected = [float(f"{value:.4e}") if np.isfinite(value) else None for value in values]
    for short, value, exact in zip(rounded(np.array(values, dtype=np.float32)), values, expected, strict=True):
        # Where five digits lie half way between two, either is right.
        assert short == exact or (exact is not None and short == pytest.approx(value, rel=5.1e-5, abs=1e-300))


def test_the_trend_is_the_mean_of_the_last_ten_known_values() -> None:
    values = np.arange(30.0)
    values[5] = np.nan
    trend = Thinning(30).trend(values)
    for row in range(30):
        assert trend[row] == pytest.approx(np.nanmean(values[max(0, row - 9) : row + 1]))


def line(step: int, **values: float) -> str:
    return json.dumps({"step": step, "phases": {"learn": 0.5}, **values}) + "\n"


def test_metrics_are_followed_while_they_grow(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    index = MetricsIndex(path)
    assert index.catch_up(ALL) and index.rows == 0 and index.series(["a"])["steps"] == []
    path.write_text(line(0, a=1.0) + line(1, a=None, b=2.0) + '{"step": 2, "a"')
    index.catch_up(ALL)
    assert index.rows == 2 and index.share_read < 1.0
    with path.open("a") as file:
        file.write(": 3.0}\nnonsense\n[1]\n")
    assert index.catch_up(ALL)
    found = index.series(["a", "b", "phases/learn", "unknown"])
    assert found["steps"] == [0, 1, 2] and found["rows"] == 3
    assert found["series"]["a"]["values"] == [1.0, None, 3.0]
    assert found["series"]["b"]["values"] == [None, 2.0, None]
    assert found["series"]["phases/learn"]["values"] == [0.5, 0.5, None]
    assert "unknown" not in found["series"] and index.bad_lines == 2
    assert index.series(["a"], first_step=1, last_step=1)["steps"] == [1]
    assert index.mean_of_last("a", 1) == 3.0 and index.mean_of_last("c", 1) is None


def test_a_resumed_run_stands_on_what_came_before_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(step, a=0.0) for step in range(10)) + "".join(line(step, a=1.0) for step in (4, 5)))
    index = MetricsIndex(path)
    index.catch_up(ALL)
    assert index.series(["a"])["steps"] == list(range(6))
    assert index.series(["a"])["series"]["a"]["values"] == [0.0] * 4 + [1.0] * 2


def test_another_file_of_the_same_name_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(step, a=0.0) for step in range(10)))
    index = MetricsIndex(path)
    index.catch_up(ALL)
    path.write_text(line(0, a=5.0))
    index.catch_up(ALL)
    assert index.series(["a"])["series"]["a"]["values"] == [5.0]


def ledger_rows(directory: Path) -> list[tuple[Any, ...]]:
    """(incarnation, step, sequence, id, cluster, source, rewards, advantages, weight) of every group, oldest first."""
    with LedgerReader(directory) as reader:
        return [
            (incarnation, step, row.group.sequence, row.group.group_id, row.cluster, row.group.source, row.group.rewards,
             row.advantages, row.weight)
            for incarnation in sorted(reader.incarnations())
            for (step,) in reader.query("SELECT step FROM commits WHERE incarnation = ? ORDER BY step", (incarnation,))
            for row in reader.batch(incarnation, step)
        ]  # fmt: skip


async def grown_run(directory: Path, part_bytes: int = 60_000) -> MadeRun:
    """A run of two incarnations over several parts, still open; the second went back to step 12."""
    run = MadeRun(directory, steps=40, groups=6, limits=LedgerLimits(part_bytes=part_bytes))
    await (await run.start()).steps(12)
    checkpoint = await run.snapshot(directory / "checkpoint")
    await run.steps(3)
    await run.close()
    await (await run.start(1, checkpoint, step=12)).steps(8)
    return run


async def test_searches_find_what_the_ledger_holds(tmp_path: Path) -> None:
    run = await grown_run(tmp_path)
    groups = RunGroups(run.directory.moments)
    assert len(part_paths(run.directory.moments)) > 2
    rows = ledger_rows(run.directory.moments)[::-1]
    assert len(rows) == (15 + 8) * 6
    an_id = rows[40][3]
    fits: list[tuple[Wanted, Callable[[tuple[Any, ...]], bool]]] = [
        (Wanted(), lambda row: True),
        (Wanted(cluster=3), lambda row: row[4] == 3),
        (Wanted(step=13), lambda row: row[1] == 13),
        (Wanted(step=13, outcome="mixed"), lambda row: row[1] == 13 and len(set(row[6])) == 2),
        (Wanted(source="gcd"), lambda row: row[5] == "gcd"),
        (Wanted(source="gcd", cluster=3), lambda row: row[5] == "gcd" and row[4] == 3),
        (Wanted(outcome="solved"), lambda row: set(row[6]) == {1.0}),
        (Wanted(outcome="unsolved", source="gcd"), lambda row: set(row[6]) == {0.0} and row[5] == "gcd"),
        (Wanted(outcome="rescued"), lambda row: len(set(row[6])) == 1 and any(row[7])),
        (Wanted(outcome="rescued", cluster=3), lambda row: len(set(row[6])) == 1 and any(row[7]) and row[4] == 3),
        (Wanted(id_prefix=an_id[:1]), lambda row: row[3][0] == an_id[0]),
        (Wanted(id_prefix=an_id[:1], outcome="mixed"), lambda row: row[3][0] == an_id[0] and len(set(row[6])) == 2),
        (Wanted(id_prefix=an_id), lambda row: row[3] == an_id),
        (Wanted(id_prefix="zz"), lambda row: False),
        (Wanted(source="no such"), lambda row: False),
    ]
    for wanted, fit in fits:
        expected = [row[:4] for row in rows if fit(row)]
        assert groups.search(wanted) == expected, wanted
        assert groups.count(wanted) == len(expected), wanted
        pages, before = [], None
        while page := groups.search(wanted, before, 5):
            pages += page
            before = Place.parse(str(page[-1]))
        assert pages == expected, wanted
    assert sum(fit(row) for row in rows for _, fit in fits[1:13]) > 100, "nearly every search finds something"
    counts = groups.sources_of_clusters()
    assert sum(counter.total() for counter in counts.values()) == len(rows)
    assert counts[3]["gcd"] == groups.count(Wanted(cluster=3, source="gcd"))
    assert groups.sources() == sorted({row[5] for row in rows})
    assert groups.incarnations() == [Incarnation(0, -1, 0, 14, 15), Incarnation(1, 11, 12, 19, 20)]
    await run.close()


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (Wanted(), "PRIMARY KEY"),
        (Wanted(step=3, cluster=1, source="gcd", outcome="mixed"), "PRIMARY KEY (incarnation=? AND step=?)"),
        (
            Wanted(id_prefix="0a7", cluster=1, outcome="rescued"),
            "INDEX folds_by_id (group_id>? AND group_id<?)",
        ),
        (Wanted(cluster=1, source="gcd", outcome="rescued"), "COVERING INDEX folds_by_cluster (cluster=? AND (incarn"),
        (Wanted(id_prefix="0", outcome="rescued"), "COVERING INDEX folds_rescued (rescued=? AND (incarn"),
        (Wanted(source="gcd", outcome="rescued"), "COVERING INDEX folds_by_source (source=? AND (incarn"),
        (Wanted(outcome="mixed"), "COVERING INDEX folds_by_outcome (outcome=? AND (incarn"),
        (Wanted(outcome="rescued"), "COVERING INDEX folds_rescued (rescued=? AND (incarn"),
    ],
)
def test_every_search_goes_by_the_index_that_leaves_least(wanted: Wanted, index: str) -> None:
    clause, values = wanted.terms([0, 1], Place(1, 2, 3, "a.b"))
    with closing(sqlite3.connect(":memory:")) as part:
        create_tables(part)
        create_indexes(part)
        (first, *_) = part.execute(f"EXPLAIN QUERY PLAN SELECT {PLACE} FROM folds {clause} {NEWEST_FIRST}", values)
    assert first[3].startswith("SEARCH") and index in first[3]


async def test_what_is_counted_grows_with_the_run(tmp_path: Path) -> None:
    run = await grown_run(tmp_path)
    groups = RunGroups(run.directory.moments)
    for _ in range(4):
        before = groups.count(Wanted()), groups.count(Wanted(outcome="rescued"))
        await run.steps(5)
        rows = ledger_rows(run.directory.moments)
        assert before[0] == len(rows) - 30 and groups.count(Wanted()) == len(rows)
        assert groups.count(Wanted(outcome="rescued")) == len(groups.search(Wanted(outcome="rescued"))) > before[1]
    await run.close()


async def test_pages_of_groups_join_without_gaps_while_the_run_goes_on(tmp_path: Path) -> None:
    run = await MadeRun(tmp_path, steps=40, groups=7).start()
    await run.steps(10)
    groups = RunGroups(run.directory.moments)
    seen: list[int] = []
    before = None
    while page := groups.search(Wanted(), before, 9):
        seen += [place.sequence for place in page]
        before = page[-1]
        await run.steps(1)  # newer groups belong on no page after the first
    assert seen == list(range(69, -1, -1))
    await run.close()


async def test_a_group_is_found_whatever_part_it_stands_in(tmp_path: Path) -> None:
    small = LedgerLimits(part_bytes=60_000)
    run = MadeRun(tmp_path, steps=40, groups=6, limits=small)
    run.ahead = 4  # so that the folds of some groups stand in a later part than they do
    await (await run.start()).steps(20)
    parts = part_paths(run.directory.moments)
    folded_elsewhere = 0
    for part in parts:
        with closing(open_for_reading(part)) as connection:
            folded_elsewhere += connection.execute(
                "SELECT COUNT(*) FROM folds LEFT JOIN groups USING (incarnation, sequence, group_id) WHERE groups.cluster IS NULL"
            ).fetchone()[0]
    assert len(parts) > 2 and folded_elsewhere > 0
    groups = RunGroups(run.directory.moments)
    places = groups.search(Wanted())
    found = groups.folded(places)
    assert [(row.incarnation, row.step, row.group.sequence, row.group.group_id) for row in found] == places
    with LedgerReader(run.directory.moments) as reader:
        assert found[::-1] == [row for step in range(20) for row in reader.batch(0, step)]
    for place, row in list(zip(places, found, strict=True))[::10]:
        assert groups.find(place.group_id) == groups.find(place.group_id, 0) == row
        assert groups.find(place.group_id, 1) is None
        texts, dropped = groups.texts(row)
        assert texts is not None and not dropped
    waiting = groups.find(run.group_ids[-1])
    assert waiting is not None and waiting.step == -1 and waiting.advantages is None
    assert groups.find("no such group") is None
    await run.close()
    assert all(is_finished(path) for path in parts), "nobody who asked still has a part open"


async def test_a_cluster_goes_as_its_groups_went(tmp_path: Path) -> None:
    run = await grown_run(tmp_path)
    groups = RunGroups(run.directory.moments)
    rows = [row for row in ledger_rows(run.directory.moments) if row[4] == 3]
    for spans, width in ((1000, 1), (20, 1), (7, 4), (1, 32)):
        history = groups.history(3, spans)
        of_span: dict[int, list[tuple[Any, ...]]] = {}
        for row in sorted(rows, key=lambda row: row[1]):
            of_span.setdefault(row[1] // width, []).append(row)
        assert history.steps.tolist() == [min((span + 1) * width - 1, 19) for span in of_span]
        assert history.reward.tolist() == pytest.approx(
            [np.mean([row[6] for row in some]) for some in of_span.values()]
        )
        assert history.trust.tolist() == pytest.approx([np.mean([row[8] for row in some]) for some in of_span.values()])
    assert len(groups.history(99, 10).steps) == 0
    prompts = groups.prompts(3, groups=400, tried=20, most=5)
    assert len({prompt for _, prompt in prompts}) == len(prompts) > 1
    assert {source for source, _ in prompts} <= {row[5] for row in rows}
    await run.close()


def test_a_run_without_a_ledger_has_no_groups(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RunGroups(tmp_path)


def test_the_map_keeps_distances_along_the_two_widest_axes() -> None:
    random = np.random.default_rng(0)
    centroids = (random.normal(size=(30, 2)) @ random.normal(size=(2, 50))).astype(np.float32)
    points = projected(centroids)
    assert points.shape == (30, 2) and np.abs(points).max() == pytest.approx(1.0)
    # In two dimensions to begin with, the map is the same up to a linear change: nothing is lost.
    design = np.column_stack([points, np.ones(30)])
    rest = np.linalg.lstsq(design, centroids.astype(np.float64), rcond=None)[1]
    assert rest.sum() < 1e-6 * np.var(centroids)
    assert np.array_equal(points, projected(centroids.copy()))
    many = random.normal(size=(200, 8)).astype(np.float32)
    assert projected(many).shape == (200, 2)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 500])
def test_maps_of_any_number_of_clusters(count: int) -> None:
    assert spiral(count).shape == (count, 2)
    assert projected(np.ones((count, 4), dtype=np.float32)).shape == (count, 2)
    moved = pushed_apart(np.zeros((count, 2)))
    assert np.isfinite(moved).all()
    if 2 <= count <= 400:
        assert len(np.unique(moved.round(6), axis=0)) == count


@settings(deadline=None)
@given(st.text())
def test_no_text_keeps_a_character_that_acts(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert not any(ord(char) < 32 and char not in "\n\t" for char in shown)
    assert not any(char in "\x7f\x1b\u202e\u2066" or 0x80 <= ord(char) < 0xA0 for char in shown)


def test_a_text_comes_in_parts_that_join() -> None:
    text = "".join(chr(97 + i % 26) for i in range(5001))
    parts, offset = "", 0
    while offset is not None:
        part = excerpt(text, offset)
        parts, offset = parts + part["text"], part["next"]
    assert parts == text
    assert visible("\x1b[31mred") == "␛[31mred"


def test_live_json_is_whole_and_does_not_cost_more_than_its_share(tmp_path: Path) -> None:
    live = LiveFile(tmp_path / "live.json")
    live.write({"step": 1, "moments": {"mean": [float("nan"), 0.5]}})
    found = json.loads(live.path.read_text())
    assert found["step"] == 1 and found["moments"]["mean"] == [None, 0.5] and found["written_at"] <= time.time()
    assert live.due()
    with live.charged():
        live.write({"step": 2})
    assert not live.due() and json.loads(live.path.read_text())["step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["live.json"]


def test_the_state_of_a_run_that_never_said_who_runs_it_as_its_files_tell(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.config.write_text("steps: 1")
    assert state_of(run, None) == "running"
    os.utime(run.config, (1, 1))
    assert state_of(run, None) == "stopped"
    assert state_of(run, 1e9) == "running", "slow steps take longer than any fixed time"
    run.paused.write_text("reward fell")
    assert state_of(run, None) == "paused"
    run.end_early("failed", "PhaseError: step 1")
    assert state_of(run, None) == "failed"
    run.end_early("stopped", "stopped after 1 steps")
    assert state_of(run, None) == "stopped"
    run.summary.write_text("{}")
    assert state_of(run, None) == "done"

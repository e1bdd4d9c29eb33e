"""What the dashboard's answers are made of: thinned series, the index of metrics, of groups, the map, shown text."""

import json
import os
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.dashboard.cluster_map import projected, pushed_apart, spiral
from deploy.dashboard.shown_text import excerpt, visible
from deploy.rundir.groups_index import GroupsIndex, Wanted
from deploy.rundir.layout import RunDirectory
from deploy.rundir.ledger_rows import LedgerRows, OldLedgerError
from deploy.rundir.live_file import LiveFile
from deploy.rundir.metrics_index import MetricsIndex
from deploy.rundir.open_run import state_of
from deploy.rundir.outcomes import Outcome, outcomes, rescued
from deploy.rundir.thinning import Thinning, binned, rounded
from moments_service.ledger import LedgerLimits, LedgerReader
from moments_service.ledger.parts import part_paths
from moments_service.ledger.schema import open_for_reading
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


def test_bins_are_means_of_equal_spans_of_steps() -> None:
    steps, means = binned(np.array([9, 0, 1, 5]), np.array([4.0, 1.0, 3.0, np.nan]), bins=5)
    assert steps.tolist() == [1, 9] and means.tolist() == [2.0, 4.0]
    assert binned(np.array([1]), np.array([np.nan]), 5)[0].tolist() == []


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


def test_outcomes_of_groups() -> None:
    nan = np.nan
    rewards = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [nan, nan], [1.0, nan], [0.0, 1.0]])
    closed = np.array([False, False, False, True, False, True])
    assert [Outcome(kind) for kind in outcomes(rewards, closed)] == [
        Outcome.MIXED, Outcome.SOLVED, Outcome.UNSOLVED, Outcome.ERROR, Outcome.SOLVED, Outcome.LOST,
    ]  # fmt: skip
    pushed = np.array([[0.5, -0.5], [0.2, 0.2], [0.0, 0.0], [nan, nan], [0.1, nan], [nan, nan]])
    assert rescued(rewards, pushed).tolist() == [False, True, False, False, True, False]


async def test_the_index_finds_what_the_ledger_holds(tmp_path: Path) -> None:
    run = await MadeRun(tmp_path, steps=40, groups=6).start()
    await run.steps(20)
    ledger = LedgerRows(run.directory.moments)
    index = GroupsIndex(ledger)
    assert index.catch_up(ALL) and index.groups == 120 and index.share_read == 1.0
    await run.steps(3)
    assert index.catch_up(ALL) and index.groups == 138
    everything = ledger.columns(0, 0, 99)
    for cluster in range(12):
        rows = [row for row in everything if row[4] == cluster]
        assert index.count(Wanted(cluster=cluster)) == len(rows)
        found = index.search(Wanted(cluster=cluster), None, 1000)
        assert [(hit.place.step, hit.sequence) for hit in found] == [(row[0], row[1]) for row in reversed(rows)]
    mixed = index.search(Wanted(outcome="mixed", source="gcd", step=7), None, 1000)
    wanted = [row[1] for row in everything if row[0] == 7 and row[3] == "gcd" and "0.0" in row[6] and "1.0" in row[6]]
    assert sorted(hit.sequence for hit in mixed) == wanted
    group_id = run.group_ids[50]
    assert 50 in [hit.sequence for hit in index.search(Wanted(id_prefix=group_id), None, 1000)]
    assert sum(counter.total() for counter in index.sources_of_clusters().values()) == 138
    await run.close()


async def test_pages_of_groups_join_without_gaps_while_the_run_goes_on(tmp_path: Path) -> None:
    run = await MadeRun(tmp_path, steps=40, groups=7).start()
    await run.steps(10)
    ledger = LedgerRows(run.directory.moments)
    index = GroupsIndex(ledger)
    index.catch_up(ALL)
    seen: list[int] = []
    before = None
    while page := index.search(Wanted(), before, 9):
        seen += [hit.sequence for hit in page]
        before = page[-1].place
        await run.steps(1)  # newer groups belong on no page after the first
        index.catch_up(ALL)
    assert seen == list(range(69, -1, -1))
    await run.close()


async def test_groups_are_found_across_the_parts_of_a_ledger(tmp_path: Path) -> None:
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
    ledger = LedgerRows(run.directory.moments)
    index = GroupsIndex(ledger)
    assert index.catch_up(ALL)
    hits = index.search(Wanted(), None, 1000)
    assert [hit.sequence for hit in hits] == list(range(119, -1, -1))
    reader = LedgerReader(run.directory.moments)
    for step in range(20):
        expected = reader.batch(0, step)
        assert ledger.folded(0, step, [entry.group.sequence for entry in expected]) == expected
        assert ledger.folded(0, step, [expected[1].group.sequence]) == expected[1:2]
    reader.close()
    (waiting,) = ledger.waiting(run.group_ids[-1])
    assert waiting.step == -1 and waiting.advantages is None
    assert ledger._reader is None, "it is open only while it is asked something"
    await run.close()


def test_an_old_ledger_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LedgerRows(tmp_path)
    (tmp_path / "ledger.sqlite").touch()
    with pytest.raises(OldLedgerError, match=r"ledger\.sqlite was written by an older version"):
        LedgerRows(tmp_path)


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


def test_the_state_of_a_run_as_its_files_tell(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.config.write_text("steps: 1")
    assert state_of(run, 0, None) == "running"
    os.utime(run.config, (1, 1))
    assert state_of(run, 0, None) == "stopped"
    assert state_of(run, 0, 1e9) == "running", "slow steps take longer than any fixed time"
    run.paused.write_text("reward fell")
    assert state_of(run, 0, None) == "paused"
    run.end_early("failed", "PhaseError: step 1")
    assert state_of(run, 0, None) == "failed"
    run.end_early("stopped", "stopped after 1 steps")
    assert state_of(run, 0, None) == "stopped"
    run.summary.write_text("{}")
    assert state_of(run, 0, None) == "done"

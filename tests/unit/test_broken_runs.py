"""One broken run directory: it is shown with its reason, nothing waits for it, and the runs beside it are shown as ever."""

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from deploy.config.recipe import ConfigError
from deploy.dashboard.app import create_app
from deploy.dashboard.run_view import overview
from deploy.report.runs import runs_table
from deploy.report.terminal import Terminal
from deploy.report.top import watch
from deploy.rundir.catalog import Catalog
from deploy.rundir.config_file import ConfigUnreadableError, read_config
from deploy.rundir.find import load_run_config
from deploy.rundir.layout import RunDirectory
from deploy.rundir.metrics_index import MetricsIndex
from deploy.rundir.open_run import OpenRun
from tests.made_runs import MadeRun

pytestmark = pytest.mark.unit

ENDPOINTS = (
    "run",
    "system",
    "clusters",
    "cluster?cluster=0",
    "groups",
    "series?series=reward/mean",
    "compare?series=a",
)
FILES = ("config.yaml", "metrics.jsonl", "evaluations.jsonl", "alarms.jsonl", "live.json", "ending.json", "summary.json", "paused", "owner.json",
         "moments", "moments/ledger-000000.sqlite", "checkpoints")  # fmt: skip
NO_FILES = ("pipe", "directory", "loop", "unreadable", "device")
MUST_BE_SAID = ("config.yaml", "metrics.jsonl", "evaluations.jsonl", "alarms.jsonl")
"""Files that are said to be missing where they cannot be read."""

ALIAS_BOMB = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)), "steps: 3",
     "moments: {estimator: {kind: *a59, variant: *a59}}"]
)  # fmt: skip
MERGE_BOMB = "\n".join(["a0: &a0 {k: v}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60))])
DEEP = b'{"step": 0, "a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n"
STRANGE = json.dumps(
    {"step": 10**30, "seconds": 10**400, "phases": [], "moments": 7, "actors": 5, "processes": [{}], "written_at": "now",
     "ending": ["x"], "token": "x", "pid": 10**30, "host": "x", "place": "x", "begun": 10**400, "started": 0, "versions": 3, "cluster_names": 1, "split": "held_out", "pass_at_1": {}, "kind": 1, "cluster": {}}
).encode() + b"\n"  # fmt: skip


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs_dir = tmp_path_factory.mktemp("healthy")

    async def make() -> None:
        run = await (await MadeRun(runs_dir, "good", steps=9, groups=4).start()).steps(4)
        await run.close()

    asyncio.run(make())
    row = {"step": 0, "split": "held_out", "pass_at_1": 0.5, "sources": {}, "prompts": 3, "errors": 0}
    (runs_dir / "good" / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
    (runs_dir / "good" / "alarms.jsonl").write_text(
        json.dumps({"step": 1, "kind": "reward fell", "cluster": 0, "expected": 1.0, "found": 0.5}) + "\n"
    )
    return runs_dir


@pytest.fixture
def runs(healthy: Path) -> Iterator[Path]:
    """The healthy run, and copies of it that a test breaks, each named after a file; where everybody may read."""
    runs_dir = Path(tempfile.mkdtemp())
    runs_dir.chmod(0o755)
    for name in ("good", *map(name_of, FILES)):
        shutil.copytree(healthy / "good", runs_dir / name)
    yield runs_dir
    shutil.rmtree(runs_dir)


def name_of(file: str) -> str:
    return f"bad {file.replace('/', ' ')}"


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path)


def nobodys(path: Path) -> None:
    path.write_bytes(b"")
    path.chmod(0)


def holding(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


BREAKAGES = {
    "pipe": pipe,
    "directory": Path.mkdir,
    "loop": loop,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "unreadable": nobodys,
    "bytes": holding(bytes(range(256)) * 64),
    "deep": holding(DEEP * 2),
    "aliases": holding(ALIAS_BOMB.encode()),
    "merges": holding(MERGE_BOMB.encode()),
    "strange": holding(STRANGE * 3),
    "lists": holding(b"[1]\n\n7\nnull\n"),
    "tags": holding(b"steps: !!float ''\nmoments: !!timestamp x\n"),
    "a long line": holding(b"{" + b" " * 5_000_000),
}


@contextmanager
def as_nobody() -> Iterator[None]:
    """As somebody for whom permissions hold."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What waits for ever fails the test instead."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", BREAKAGES)
def test_a_broken_file_takes_nobody_else_along(runs: Path, kind: str) -> None:
    for file in FILES:
        path = runs / name_of(file) / file
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        BREAKAGES[kind](path)
    with TestClient(create_app(runs)) as client:
        # What is imported late must be there: nobody may not read a Python of root's.
        for endpoint in ENDPOINTS:
            client.get(f"/api/{endpoint}{'&' if '?' in endpoint else '?'}name=good")
    with as_nobody(), within(60):
        rows = {row["name"]: row for row in Catalog(runs).rows()}
        assert len(rows) == 1 + len(FILES)
        assert rows["good"]["steps"] == 4 and rows["good"]["problem"] is None and rows["good"]["held_out"] == [0.5, 0.5]
        for file in MUST_BE_SAID if kind in NO_FILES else ():
            assert rows[name_of(file)]["state"] == "broken" and file in rows[name_of(file)]["problem"]
        table = StringIO()
        Terminal(file=table, width=200).print(runs_table(list(rows.values())))
        assert all(name in table.getvalue() for name in rows)
        # A client that raises what the server does: no answer is an accident.
        with TestClient(create_app(runs)) as client:
            for name in rows:
                for endpoint in ENDPOINTS:
                    answer = client.get(f"/api/{endpoint}{'&' if '?' in endpoint else '?'}name={name}")
                    assert answer.status_code in ((200,) if name == "good" else (200, 404, 409)), (
                        name,
                        endpoint,
                        answer,
                    )
                    assert answer.status_code == 200 or answer.json()["problem"]
                head = client.get("/api/run", params={"name": name}).json()
                assert head["state"] == rows[name]["state"] and head["problem"] == rows[name]["problem"]
            assert {row["name"] for row in client.get("/api/runs").json()["runs"]} == set(rows)
        for name in rows:
            watch(RunDirectory(runs / name), Terminal(file=StringIO()), once=True)


def test_a_directory_that_nobody_may_look_into_is_listed_with_the_reason(runs: Path) -> None:
    (runs / "bad paused").chmod(0)
    with as_nobody(), within(10):
        rows = {row["name"]: row for row in Catalog(runs).rows()}
    assert rows["bad paused"]["state"] == "broken" and rows["bad paused"]["problem"] == "config.yaml: Permission denied"
    assert rows["good"]["state"] != "broken"


def test_a_ledger_that_never_answers_is_given_up(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.rundir.groups.QUERY_S", 0.2)
    (ledger,) = (runs / "bad paused" / "moments").glob("ledger-*.sqlite")
    ledger.chmod(0o644)
    columns = "incarnation, step, sequence, group_id, source, cluster, outcome, reward, signal, rescued, weight"
    with closing(sqlite3.connect(ledger)) as part:
        part.execute("DROP TABLE folds")
        part.execute(
            f"CREATE VIEW folds({columns}) AS WITH RECURSIVE more(x) AS (SELECT 1 UNION ALL SELECT x FROM more) "
            "SELECT x, x, x, x, x, x, x, x, x, x, x FROM more"
        )
    with within(20), TestClient(create_app(runs)) as client:
        refused = client.get("/api/groups", params={"name": "bad paused"})
        assert refused.status_code == 409 and "does not answer" in refused.json()["problem"]
        assert client.get("/api/groups", params={"name": "good"}).status_code == 200


def test_a_run_that_goes_while_it_is_listed_is_no_accident(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog(runs)
    found = catalog.runs()
    shutil.rmtree(runs / "bad paused")
    monkeypatch.setattr(catalog, "runs", lambda: found)
    assert {row["name"]: row["state"] for row in catalog.rows()}["bad paused"] == "broken"


@pytest.mark.parametrize("bomb", [ALIAS_BOMB, MERGE_BOMB, "a: " + "[" * 100_000, "a: 2001-99-99", "a: " + "1" * 5000])
def test_a_configuration_that_no_run_writes_is_refused_at_once(tmp_path: Path, bomb: str) -> None:
    run = RunDirectory(tmp_path)
    run.config.write_text(bomb)
    with within(10):
        with pytest.raises(ConfigUnreadableError, match=r"config\.yaml"):
            read_config(run)
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            load_run_config(run)


def test_a_configuration_as_a_run_writes_it_has_no_aliases(healthy: Path) -> None:
    assert read_config(RunDirectory(healthy / "good"))["steps"] == 9


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["step", "seconds", "phases", "reward/pass_at_1", "signal/own", "pass_at_1/a", "staleness/0", "staleness/x",
                         "learner/mismatch_share/>1", "policy_version", "tokens_per_s"])  # fmt: skip
ROWS = st.lists(st.dictionaries(NAMES | st.text(max_size=4), JSON, max_size=6), max_size=6)
LIVE = st.dictionaries(
    st.sampled_from(["moments", "actors", "slots", "written_at", "processes", "cluster_names", "step"]), JSON
)
CLUSTERS = st.dictionaries(st.sampled_from(["mean", "variance", "mass", "weight", "seen"]), st.lists(JSON, max_size=3))


@given(rows=ROWS, live=LIVE | LIVE.flatmap(lambda one: CLUSTERS.map(lambda c: one | {"moments": {"clusters": c}})))
def test_whatever_the_files_hold_the_views_show_something(rows: list[dict[str, Any]], live: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        run = RunDirectory(Path(place))
        run.config.write_text("steps: 3\n")
        for path in (run.metrics, run.alarms, run.evaluations):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run.live.write_text(json.dumps(live))
        opened = OpenRun(run)
        opened.catch_up(10.0)
        assert overview(opened)["bad_lines"] <= len(rows)
        watch(run, Terminal(file=StringIO()), once=True)
        (row,) = Catalog(run.path).rows()
        assert row["state"] == "running"


def test_a_line_without_end_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 0, "a": 1.0}\n{"step": 1, "a": "' + b"x" * 7_000_000 + b'"}\n{"step": 2, "a": 3.0}\n{"st'
    )
    index = MetricsIndex(path)
    with within(20):
        assert not index.catch_up(0.0) or index.rows
        index.catch_up(10.0)
    assert index.series(["a"])["steps"] == [0, 2] and index.bad_lines == 1


def test_columns_that_take_too_much_memory_are_said_to_be_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.rundir.metrics_index._MOST_BYTES", 10_000)
    monkeypatch.setattr("deploy.rundir.metrics_index._CHUNK_BYTES", 20_000)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "a": 1.0}) + "\n" for step in range(10_000)))
    index = MetricsIndex(path)
    assert index.catch_up(10.0) and 0 < index.rows < 10_000
    assert index.cut is not None and f"only its first {index.rows:,} steps are shown" in index.cut

"""Trackers: each for real and offline, read back with its own reader; and what a bad one does to a run: nothing."""

import asyncio
import json
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from deploy.cluster.environment import EnvironmentProblemError
from deploy.config.recipe import ConfigError, load_recipe
from deploy.rundir.evaluation import Evaluation
from deploy.rundir.layout import RunDirectory
from deploy.rundir.metrics_index import numbers_of
from deploy.watching import ray_metrics, trackers, watchers
from deploy.watching.ray_metrics import RayMetrics, label_value
from deploy.watching.sink import Numbers
from deploy.watching.trackers import MODULES, TrackerName, Tracking, chosen_trackers
from deploy.watching.watchers import Watchers
from moments_service.health import Alarm
from tests.conftest import ROOT, settings

pytestmark = pytest.mark.unit

RECIPE = ROOT / "deploy" / "recipes" / "cold_start.yaml"
ROW = {"seconds": 1.5, "phases": {"learn": 0.4}, "reward/mean": 0.25, "learner/entropy": 2.0}
SERVICES = {
    "slots": 8, "in_flight": 3, "scored": 1, "restarts": 0, "actors": [{"serving": True}, {"serving": False}],
    "moments": {"ready": 2, "counts": {"groups": 8}, "clusters": {"seen": [1, 0, 2]}},
}  # fmt: skip


def needs(name: TrackerName) -> None:
    try:
        chosen_trackers(name, None)
    except EnvironmentProblemError as problem:
        pytest.skip(str(problem))


async def track(directory: RunDirectory, name: TrackerName, first: int, last: int, wanted: int) -> list[str]:
    """A start of a run with one tracker, from step `first` to `last`. Returns what was said."""
    said: list[str] = []
    config = load_recipe(RECIPE, [f"steps={wanted}"])
    watching = Watchers.open(config, directory, first, [name], said.append)
    watching.evaluation(first, "held_out", Evaluation(0.5, {"a, b": 0.5}, 4, 0))
    for step in range(first, last):
        watching.step({"step": step, **ROW, "reward/mean": step / 10}, SERVICES)
    watching.alarm(last, Alarm("reward fell", None, 0.5, 0.1))
    await watching.close(finished=last >= wanted)
    await asyncio.sleep(0)  # what was said from threads
    return said


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run's directory, with nothing of this machine's own settings, and no Ray."""
    for variable in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(variable)
    for variable in (
        "WANDB_CACHE_DIR",
        "WANDB_CONFIG_DIR",
        "WANDB_DATA_DIR",
        "WANDB_ERROR_REPORTING",
        "MLFLOW_DISABLE_TELEMETRY",
    ):
        monkeypatch.setenv(variable, "")  # so that what a sink sets is taken back
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(watchers, "RayMetrics", NoMetrics)
    monkeypatch.setattr(watchers, "CLOSE_TIMEOUT_S", 120.0)
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    return run


class NoMetrics:
    address = None

    def __init__(self, *_: object) -> None: ...

    def log(self, step: int, numbers: Numbers) -> None: ...

    def alarm(self, step: int, text: str) -> None: ...

    def close(self, finished: bool) -> None: ...


def nothing_outside(run: RunDirectory) -> None:
    """Every file is below RUN/trackers."""
    home = run.path.parent / "home"
    assert list(run.path.iterdir()) == [run.trackers]
    assert [path for path in home.rglob("*") if path.is_file()] == []


async def test_tensorboard_has_the_run_and_forgets_steps_that_are_made_again(directory: RunDirectory) -> None:
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert await track(directory, "tensorboard", 0, 4, wanted=6) == []
    assert await track(directory, "tensorboard", 2, 6, wanted=6) == []
    events = EventAccumulator(str(directory.trackers / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("reward/mean")]
    assert found == [(step + 1, pytest.approx(step / 10)) for step in range(6)]
    assert events.Scalars("phases/learn")[0].value == pytest.approx(0.4)
    assert events.Scalars("groups/ready")[0].value == 2 and events.Scalars("actors/away")[0].value == 1
    assert events.Scalars("evaluation/held_out")[0].step == 0
    assert b"reward fell in all clusters" in events.Tensors("alarms/text_summary")[-1].tensor_proto.string_val[0]
    nothing_outside(directory)


async def test_wandb_offline_keeps_its_id_through_a_resume(directory: RunDirectory) -> None:
    needs("wandb")
    assert await track(directory, "wandb", 0, 4, wanted=6) == []
    first_ended = int(time.time())
    while int(time.time()) == first_ended:  # noqa: ASYNC110 - wandb names its files by the second; no resume is that quick
        await asyncio.sleep(0.01)
    assert await track(directory, "wandb", 2, 6, wanted=6) == []
    place = directory.trackers / "wandb"
    id_ = (place / "run_id").read_text()
    logs = sorted((place / "wandb").glob(f"offline-run-*-{id_}*/run-{id_}.wandb"))
    assert logs
    records = [record for log in logs for record in wandb_records(log)]
    assert {record.run.run_id for record in records if record.HasField("run")} == {id_}
    rows = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    found = [(row["policy_step"], row["reward/mean"]) for row in rows if "reward/mean" in row]
    assert found == [(step + 1, step / 10) for step in (*range(4), *range(2, 6))]
    first = next(record.alert.text for record in records if record.HasField("alert"))
    assert first.startswith("after step 4: reward fell")
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1, 0]
    nothing_outside(directory)


def wandb_records(log: Path) -> list[Any]:
    """Records of an offline run: LevelDB's log format, blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, records = log.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its last part
            records.append(Record.FromString(whole))
            whole = b""
    return records


async def test_mlflow_goes_on_with_its_run_after_a_resume(directory: RunDirectory) -> None:
    needs("mlflow")
    from mlflow import MlflowClient

    assert await track(directory, "mlflow", 0, 4, wanted=6) == []
    client = MlflowClient(f"sqlite:///{directory.trackers / 'mlflow' / 'mlflow.db'}")
    id_ = (directory.trackers / "mlflow" / "run_id").read_text()
    assert client.get_run(id_).info.status == "KILLED"
    assert await track(directory, "mlflow", 2, 6, wanted=6) == []
    run = client.get_run(id_)
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert len(client.search_runs([run.info.experiment_id])) == 1
    found = [(metric.step, metric.value) for metric in client.get_metric_history(id_, "reward/mean")]
    assert sorted(found) == sorted((step + 1, step / 10) for step in (*range(4), *range(2, 6)))
    assert run.data.metrics["evaluation_sources/held_out/a_ b"] == 0.5
    assert run.data.params["learner.optimizer.lr"] == "0.0004"
    assert run.data.tags["last alarm"].startswith("after step 6: reward fell")
    nothing_outside(directory)


class Recorder(NoMetrics):
    """A tracker that works until it is told not to."""

    def __init__(self, fail_at: int = 10**9) -> None:
        self.steps: list[int] = []
        self.closed: bool | None = None
        self._fail_at = fail_at

    def log(self, step: int, numbers: Numbers) -> None:
        if step == self._fail_at:
            raise ConnectionError("the network is gone")
        self.steps.append(step)

    def close(self, finished: bool) -> None:
        self.closed = finished


def test_a_tracker_gets_everything_in_order_before_it_ends() -> None:
    sink, said = Recorder(), list[str]()
    tracking = Tracking("made", lambda: sink, said.append)
    for step in range(300):
        tracking.log(step, {})
    tracking.close(finished=True)
    tracking.wait(time.monotonic() + 60)
    assert sink.steps == list(range(300)) and sink.closed is True and said == []


@pytest.mark.parametrize("fail_at", [-1, 3])
def test_a_tracker_that_fails_is_said_once_and_left_alone(fail_at: int) -> None:
    sink, said = Recorder(fail_at), list[str]()

    def opened() -> Recorder:
        if fail_at < 0:
            raise ConnectionError("the network is gone")
        return sink

    tracking = Tracking("made", opened, said.append)
    for step in range(10):
        tracking.log(step, {})
    tracking.wait(time.monotonic() + 60)
    tracking.log(11, {})
    tracking.close(finished=True)
    tracking.wait(time.monotonic() + 60)
    assert said == [
        "tracker made: ConnectionError: the network is gone; the run goes on without it, metrics.jsonl has everything"
    ]
    assert sink.steps == list(range(max(fail_at, 0))) and sink.closed is None


@pytest.mark.parametrize("breaks", ["open", "log", "alarm", "close"])
async def test_metrics_that_fail_are_said_once_and_end_no_run(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    class Broken(NoMetrics):
        def __init__(self, *_: object) -> None:
            if breaks == "open":
                raise OSError("no space left")

        def log(self, step: int, numbers: Numbers) -> None:
            if breaks == "log":
                raise OSError("no space left")

        def alarm(self, step: int, text: str) -> None:
            if breaks == "alarm":
                raise OSError("no space left")

        def close(self, finished: bool) -> None:
            if breaks == "close":
                raise OSError("no space left")

    monkeypatch.setattr(watchers, "RayMetrics", Broken)
    said: list[str] = []
    watching = Watchers.open(load_recipe(RECIPE, []), directory, 0, [], said.append)
    for step in range(3):
        watching.step({"step": step, **ROW}, SERVICES)
        watching.evaluation(step, "held_out", Evaluation(0.5, {}, 4, 0))
        watching.alarm(step, Alarm("reward fell", None, 0.5, 0.1))
    await watching.close(finished=True)
    assert said == ["Ray's metrics: OSError: no space left; the run goes on without it, metrics.jsonl has everything"]


@pytest.mark.parametrize("name", ["数学", "[math]", "[/b]", "line\nbreak", "\ud800", "\x1b[2J", "é" * 300, ""])
async def test_sources_and_runs_of_any_name_reach_ray_s_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(ray_metrics, "export_address", lambda: "127.0.0.1:1")
    metrics = RayMetrics(f"run {name}", 0, 10, tmp_path / "prometheus.json")
    metrics.log(1, {"seconds": 1.0, f"pass_at_1/{name}": 0.5, f"pass_at_1/{name} 2": 0.25})
    metrics.publish()  # into Ray's own library, which refuses what is not ASCII
    metrics.close(finished=True)
    assert label_value(name).isascii() and label_value(name).isprintable()
    assert label_value("plain [math] %") == "plain [math] %" and label_value("é") == "%C3%A9"


async def test_what_goes_wrong_in_the_thread_of_the_metrics_is_raised_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: RayMetrics) -> None:
        raise ValueError("not this one")

    monkeypatch.setattr(ray_metrics, "export_address", lambda: None)
    monkeypatch.setattr(ray_metrics, "REFRESH_S", 0.0)
    monkeypatch.setattr(RayMetrics, "publish", broken)
    metrics = RayMetrics("run", 0, 10, tmp_path / "prometheus.json")
    metrics._thread.join()
    with pytest.raises(ValueError, match="not this one"):
        metrics.log(1, {})


def test_a_tracker_that_hangs_holds_up_neither_the_steps_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "MOST_WAITING", 5)
    said: list[str] = []
    forever = threading.Event()

    class Hanging(Recorder):
        def log(self, step: int, numbers: Numbers) -> None:
            forever.wait()

    slow, late = (Tracking(name, Hanging, said.append) for name in ("slow", "late"))
    late.log(0, {})
    for step in range(20):
        slow.log(step, {})
    for tracking in (slow, late):
        tracking.close(finished=True)
        tracking.wait(time.monotonic())
    forever.set()
    assert [line.split(";")[0] for line in said] == [
        "tracker slow: is 5 reports behind",
        "tracker late: did not end in time",
    ]


@pytest.mark.parametrize("name", MODULES)
def test_a_missing_tracker_is_refused_before_anything_starts(tmp_path: Path, name: TrackerName) -> None:
    arguments = ["bvblend", "train", str(RECIPE), *settings(runs_dir=tmp_path), "--track", name]
    code = (
        "import sys, importlib.util as machinery\n"
        "found = machinery.find_spec\n"
        f"machinery.find_spec = lambda module: None if module in {MODULES[name]!r} else found(module)\n"
        f"from deploy.cli.main import main\nsys.argv = {arguments!r}\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 3, done.stderr
    assert f"--track {name}: it needs {MODULES[name][0]}" in done.stderr and f"'.[{name}]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="there is no wanddb; did you mean wandb"):
        chosen_trackers("wanddb", None)


def test_a_resume_goes_on_with_the_trackers_of_the_run(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda module: module)
    assert chosen_trackers(None, directory) == ()
    (directory.trackers / "mlflow").mkdir(parents=True)
    (directory.trackers / "something else").mkdir()
    assert chosen_trackers(None, directory) == ("mlflow",)
    assert chosen_trackers("tensorboard,mlflow", directory) == ("tensorboard", "mlflow")
    assert chosen_trackers(None, None) == ()


def test_numbers_are_what_metrics_jsonl_has() -> None:
    row = {"step": 1, "phases": {"learn": 0.5, "odd": "x"}, "reward/mean": 0.5, "flag": True, "text": "x"}
    assert numbers_of(row) == {"step": 1, "phases/learn": 0.5, "reward/mean": 0.5}

"""The life of one run with vLLM, in this order: it is looked at from outside while it goes on, stopped as a scheduler does it, resumed,
and ends. Whatever watches a run watches this one: `top`, the dashboard, `doctor` as somebody would who was asked for help, a real
Prometheus, and every tracker that is installed.
"""

import ipaddress
import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.cluster.environment import EnvironmentProblemError
from deploy.rundir.layout import RunDirectory
from deploy.watching.metric_table import EXPORTED_PREFIX, METRICS
from deploy.watching.trackers import MODULES, chosen_trackers
from moments_service.ledger.schema import open_for_reading
from tests.conftest import ROOT, Command, brief_evaluations, commands, settings
from tests.integration.prometheus import Prometheus, needs_prometheus, panel_expressions, rule_selectors
from tests.turns import alone

pytestmark = pytest.mark.integration

RECIPE = ROOT / "deploy" / "recipes" / "cold_start.yaml"
START_S = 300.0
DATA_S = 120.0
SECRET = "s3cr3t-of-the-run"


def installed_trackers() -> list[str]:
    found = []
    for name in MODULES:
        try:
            found += chosen_trackers(name, None)
        except EnvironmentProblemError:
            continue
    return found


@dataclass(frozen=True)
class Live:
    """A run that goes on."""

    command: Command
    run: RunDirectory
    trackers: list[str]


@dataclass(frozen=True)
class Interrupted:
    """What SIGTERM to the whole process group led to."""

    exit_code: int
    seconds: float
    step: int
    run: RunDirectory
    output: str


@pytest.fixture(scope="module")
def bvblend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    with commands(tmp_path_factory.mktemp("life")) as start:
        yield start


@pytest.fixture(scope="module")
def live(bvblend: Callable[..., Command], tmp_path_factory: pytest.TempPathFactory) -> Live:
    # wandb writes for seconds after its run has ended; it joins at the resume, so that the end is timed without it.
    runs, trackers = tmp_path_factory.mktemp("runs"), [name for name in installed_trackers() if name != "wandb"]
    quick = [*settings(steps=10_000, checkpoint__every=0, runs_dir=runs, name=SECRET), *brief_evaluations()]
    track = ("--track", ",".join(trackers)) if trackers else ()
    with pytest.MonkeyPatch.context() as patch:
        for variable in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
            patch.delenv(variable)
        patch.setenv("SOMEBODYS_API_KEY", SECRET)  # whoever helps does not have it
        command = bvblend("train", RECIPE, *quick, "--dashboard", "0", *track)
    command.wait_for("step    3/", START_S)
    return Live(command, RunDirectory((runs / "latest").resolve()), trackers)


@pytest.fixture(scope="module")
def prometheus(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), live.run.path.parent)
    yield server
    server.end()


@pytest.fixture(scope="module")
def interrupted(live: Live) -> Interrupted:
    with alone():
        asked = time.monotonic()
        live.command.signal_group(signal.SIGTERM)
        code = live.command.wait(30)
        seconds = time.monotonic() - asked
    live.command.wait_until_nothing_is_left(10)
    (step,) = live.run.checkpoint_steps()
    return Interrupted(code, seconds, step, live.run, live.command.output())


@pytest.fixture(scope="module")
def resumed(interrupted: Interrupted, bvblend: Callable[..., Command]) -> Command:
    track = ("--track", "wandb") if "wandb" in installed_trackers() else ()
    command = bvblend("train", "--resume", interrupted.run.path, *settings(steps=interrupted.step + 2), *track)
    assert command.wait(START_S) == 0, command.output()
    return command


def test_top_and_runs_show_that_it_runs(live: Live, bvblend: Callable[..., Command]) -> None:
    top = bvblend("top", live.run.path.parent / "latest")
    runs = bvblend("runs", live.run.path.parent)
    assert top.wait(60) == 0, top.output()
    assert "running" in top.output() and "1 of 1 actors serve" in top.output() and "pass@1" in top.output()
    assert runs.wait(60) == 0 and "running" in runs.output(), runs.output()


def test_it_listens_on_loopback_only_and_on_no_port_that_is_not_documented(live: Live) -> None:
    page = (ROOT / "docs" / "cluster.md").read_text().partition("## Which ports are open")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    documented = [re.findall("`(.*?)`", row) for row in rows]
    assert len(documented) > 8
    driver = psutil.Process(live.command.process.pid)
    silent = {
        row for row, names in enumerate(documented) if names != ["ray::IDLE"]
    }  # Ray keeps such workers or does not
    for process in (driver, *driver.children(recursive=True)):
        try:
            name = " ".join(process.cmdline())
            ports = [each for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
        except psutil.NoSuchProcess:
            continue  # it ended while we looked
        for port in ports:
            assert ipaddress.ip_address(port.laddr.ip.removeprefix("::ffff:")).is_loopback, f"{port.laddr}: {name}"
            known = {row for row, names in enumerate(documented) if any(each in name for each in names)}
            assert known, f"{port.laddr} of {name} is not in docs/cluster.md"
            silent -= known
    assert not silent, f"these listen on nothing: {[documented[row] for row in silent]}"


def test_its_workers_step_back_behind_no_other_program(live: Live) -> None:
    driver = psutil.Process(live.command.process.pid)
    workers = [each for each in driver.children(recursive=True) if "ray::" in " ".join(each.cmdline())]
    assert len(workers) >= 3 and {worker.nice() for worker in workers} == {driver.nice()}


def test_its_own_dashboard_answers(live: Live) -> None:
    (page,) = re.findall(r"dashboard: (http://127\.0\.0\.1:\d+/)", live.command.output())
    with urllib.request.urlopen(f"{page}api/run?name={live.run.path.name}", timeout=30) as answer:
        shown = json.load(answer)
    assert shown["state"] == "running" and shown["steps"] >= 2 and shown["histograms"]["staleness"] == {"0": 1.0}


def test_a_bundle_for_whoever_helps_has_the_state_and_the_stacks_and_no_secret(
    live: Live, bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    bundle = tmp_path / "help.zip"
    doctor = bvblend("doctor", live.run.path, "--out", bundle)
    assert doctor.wait(120) == 0, doctor.output()
    with zipfile.ZipFile(bundle) as file:
        texts = {name: file.read(name).decode() for name in file.namelist()}
    assert SECRET not in "".join(texts.values()) and "[redacted SOMEBODYS_API_KEY]" in texts["run/config.yaml"]
    processes = {row["role"]: row for row in json.loads(texts["processes.json"])}
    assert set(processes) == {"driver", "moments service", "learner rank 0", "rollout actor 0"}
    assert all(row["resident"] > 50e6 for row in processes.values())
    assert "deploy/cli/main.py" in texts["stacks/driver.txt"]
    for role in processes:
        assert "Thread" in texts[f"stacks/{role.replace(' ', '-')}.txt"], role
    # vLLM's engine is a process of its own, below the actor.
    assert texts["stacks/rollout-actor-0.txt"].count("Process ") > 1
    assert any(name.startswith("logs/rollout-actor-0") for name in texts)
    assert json.loads(texts["about.json"])["run"]["state"] == "running"
    assert json.loads(texts["ledger.json"])["starts"][0]["steps"] >= 2


def until(condition: Callable[[], Any], timeout_s: float, what: Callable[[], str], alive: Command) -> None:
    """Wait for what another process does. Polls: nobody tells us."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert alive.process.poll() is None, f"the run ended: {alive.output()}"
        assert time.monotonic() < deadline, f"after {timeout_s:g} s: {what()}"
        time.sleep(0.5)


@needs_prometheus
def test_every_expression_that_ships_finds_data(live: Live, prometheus: Prometheus) -> None:
    expressions = panel_expressions() | rule_selectors()
    expressions |= {f"metric {metric.name}": EXPORTED_PREFIX + metric.name for metric in METRICS}
    assert len(expressions) > 60
    missing = dict(expressions)

    def all_there() -> bool:
        try:
            for place, expression in expressions.items():
                if place in missing and prometheus.series(expression):
                    del missing[place]
        except urllib.error.URLError:
            return False  # it does not listen yet
        return not missing

    until(all_there, DATA_S, lambda: f"no data for {missing}", live.command)

    steps = prometheus.series(f'{EXPORTED_PREFIX}step{{run="{live.run.path.name}"}}')
    assert len(steps) == 1 and float(steps[0]["value"][1]) >= 1
    phases = prometheus.series(f"{EXPORTED_PREFIX}phase_seconds")
    assert {"generate", "score", "moments", "learn", "publish"} <= {series["metric"]["phase"] for series in phases}
    labels = {
        label for series in prometheus.series(f'{{__name__=~"{EXPORTED_PREFIX}.*"}}') for label in series["metric"]
    }
    assert labels <= {"__name__", "job", "instance", "run", *(metric.label for metric in METRICS if metric.label)}
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == 10 and {rule["health"] for rule in rules} == {"ok"}
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []


def test_sigterm_to_its_group_ends_it_in_ten_seconds_with_a_checkpoint_to_go_on_from(interrupted: Interrupted) -> None:
    assert interrupted.exit_code == 130, interrupted.output
    assert interrupted.seconds < 10
    # The secret is in the name of the run, and what the command says at its end is read by others too.
    path = str(interrupted.run.path).replace(SECRET, "[redacted SOMEBODYS_API_KEY]")
    assert interrupted.step >= 3 and f"--resume {path}" in interrupted.output
    assert not (interrupted.run.path / "prometheus.json").exists()


def test_a_resume_goes_on_where_it_stopped_and_ends(interrupted: Interrupted, resumed: Command) -> None:
    assert [row["step"] for row in interrupted.run.read_metrics()] == list(range(interrupted.step + 2))
    assert json.loads(interrupted.run.summary.read_text())["steps"] == interrupted.step + 2
    resumed.wait_until_nothing_is_left(30)


def test_it_was_one_run_to_every_tracker(live: Live, interrupted: Interrupted, resumed: Command) -> None:
    if not installed_trackers():
        pytest.skip("no tracker is installed: make install-trackers")
    for output in (interrupted.output, resumed.output()):
        assert "tracker" not in output.replace("/trackers/", "")
    trackers, last = live.run.path / "trackers", interrupted.step + 2
    assert {path.name for path in trackers.iterdir()} == set(installed_trackers())
    if "tensorboard" in live.trackers:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(trackers / "tensorboard"), size_guidance={"scalars": 0})
        events.Reload()
        assert [event.step for event in events.Scalars("reward/mean")] == list(range(1, last + 1))
        assert [event.step for event in events.Scalars("evaluation/held_out")] == [0, last]
    if "wandb" in installed_trackers():
        id_ = (trackers / "wandb" / "run_id").read_text()
        assert len(list((trackers / "wandb" / "wandb").glob(f"offline-run-*-{id_}"))) == 1
    if "mlflow" in live.trackers:
        with closing(open_for_reading(trackers / "mlflow" / "mlflow.db")) as store:
            assert store.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
            steps = store.execute("SELECT step FROM metrics WHERE key = 'reward/mean' ORDER BY step").fetchall()
            assert steps == [(step,) for step in range(1, last + 1)]

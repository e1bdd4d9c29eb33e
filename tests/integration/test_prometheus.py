"""A real Prometheus scrapes a real run: every expression that ships for Grafana and for alerts finds data."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.watching.metric_table import EXPORTED_PREFIX, METRICS
from tests.conftest import ROOT, Command, settings

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="no prometheus and promtool on the PATH (Debian's package is called prometheus)",
)
pytestmark = [pytest.mark.integration, needs_prometheus]

SHIPPED = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "bvblend.json"
RECIPE = ROOT / "deploy" / "recipes" / "cold_start.yaml"
START_S = 300.0
DATA_S = 120.0
SELECTOR = re.compile(r"ray_bvblend_\w+(?:\{[^}]*\})?")


class Prometheus:
    """One server on a free port of loopback, which knows the runs of one directory."""

    def __init__(self, directory: Path, runs: Path) -> None:
        config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (job,) = config["scrape_configs"]
        job["file_sd_configs"] = [{"files": [str(runs / "latest" / "prometheus.json")], "refresh_interval": "1s"}]
        shutil.copy(SHIPPED / "alerts.yml", directory)
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self.log = directory / "prometheus.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={directory / 'prometheus.yml'}", f"--web.listen-address={self._address}",
                 f"--storage.tsdb.path={directory / 'data'}"],
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of the HTTP API; raises URLError while it does not listen."""
        address = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]

    def series(self, expression: str) -> list[Any]:
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    directory = tmp_path / "prometheus"
    directory.mkdir()
    server = Prometheus(directory, tmp_path / "runs")
    yield server
    server.end()


def panel_expressions() -> dict[str, str]:
    """Every expression of the dashboard by the panel it is in, with `$run` as Grafana fills it in for all runs."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {
        f"panel {panel['title']!r} {target['refId']}": target["expr"].replace("$run", ".*")
        for panel in panels
        for target in panel.get("targets", ())
    }


def rule_selectors() -> dict[str, str]:
    """Every selector of an alert rule: the rule itself is silent in a healthy run, what it looks at must not be."""
    (group,) = yaml.safe_load((SHIPPED / "alerts.yml").read_text())["groups"]
    return {
        f"rule {rule['alert']}: {found}": found for rule in group["rules"] for found in SELECTOR.findall(rule["expr"])
    }


def until(condition: Callable[[], Any], timeout_s: float, what: Callable[[], str], alive: Command) -> None:
    """Wait for what another process does. Polls: nobody tells us."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert alive.process.poll() is None, f"the run ended: {alive.output()}"
        assert time.monotonic() < deadline, f"after {timeout_s:g} s: {what()}"
        time.sleep(0.5)


def test_what_ships_for_prometheus_is_valid() -> None:
    for check, name in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
        done = subprocess.run(["promtool", "check", check, SHIPPED / name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_go_off_when_they_should_and_only_then(tmp_path: Path) -> None:
    """Two hours of four runs, in which 100 steps are wanted; evaluated by Prometheus' own rule tester, a sample a minute."""
    lives = {
        "healthy": ("0+1x80", "0+60x80"),  # a step a minute
        "stalled": ("0+1x9 9x70", "0+60x9 540x70"),
        "killed": ("0+1x30", "0+60x30"),
        "resumed and done": ("0+1x30 _x10 25+5x15", "0+60x30 _x10 2460+60x15"),
    }
    series = [
        {"series": f'{EXPORTED_PREFIX}{name}{{run="{run}"}}', "values": values}
        for run, (steps, times) in lives.items()
        for name, values in (("step", steps), ("last_step_timestamp_seconds", times), ("steps_wanted", steps.replace("0+1", "100+0").replace("9x70", "100x70").replace("25+5", "100+0")))
    ]  # fmt: skip
    series.append({"series": f'{EXPORTED_PREFIX}alarms{{run="healthy"}}', "values": "0x70 1x10"})
    fired = {
        ("BvblendRunStalled", "20m"): [],
        ("BvblendRunStalled", "30m"): ["stalled"],
        ("BvblendRunGone", "30m"): [],
        ("BvblendRunGone", "75m"): ["killed"],
        ("BvblendAlarmRaised", "60m"): [],
        ("BvblendAlarmRaised", "75m"): ["healthy"],
    }
    (group,) = yaml.safe_load((SHIPPED / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        rule.pop("annotations")
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [group]}))
    severity = {rule["alert"]: rule["labels"]["severity"] for rule in group["rules"]}
    cases = [
        {"eval_time": when, "alertname": alert,
         "exp_alerts": [{"exp_labels": {"run": run, "severity": severity[alert]}} for run in runs]}
        for (alert, when), runs in fired.items()
    ]  # fmt: skip
    tests = [{"interval": "1m", "input_series": series, "alert_rule_test": cases}]
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": tests}))
    done = subprocess.run(
        ["promtool", "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_expression_finds_data_while_a_run_goes_on(
    bvblend: Callable[..., Command], prometheus: Prometheus, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    run = bvblend(
        "train", RECIPE, *settings(
            rollout__engine="transformers", batch_groups=4, group_size=2, evaluation__train_prompts=8,
            prompts__sources__0__held_out=4, checkpoint__every=0, steps=100_000, runs_dir=runs,
        ),
    )  # fmt: skip
    run.wait_for("metrics at http://", START_S)
    name = (runs / "latest").resolve().name
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

    until(all_there, START_S + DATA_S, lambda: f"no data for {missing}", run)

    steps = prometheus.series(f'{EXPORTED_PREFIX}step{{run="{name}"}}')
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

    os.kill(run.process.pid, signal.SIGINT)
    assert run.wait(60) == 130
    assert not (runs / "latest" / "prometheus.json").exists()
    run.wait_until_nothing_is_left(30)

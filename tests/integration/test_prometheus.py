"""What ships for Prometheus: valid, and its alerts go off when they should."""

import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.watching.metric_table import EXPORTED_PREFIX
from tests.integration.prometheus import SHIPPED, needs_prometheus

pytestmark = [pytest.mark.integration, needs_prometheus]


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

"""The table of metrics: what it reads, what the docs say of it, and that dashboard and rules use nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.watching.metric_table import EXPORTED_PREFIX, METRICS, readings
from deploy.watching.sink import service_numbers
from docs.metrics_reference import reference
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

SERVICES: dict[str, Any] = {
    "slots": 8, "in_flight": 3, "scored": 1, "restarts": 2, "actors": [{"serving": True}, {"serving": False}],
    "moments": {"ready": 4, "counts": {"groups": 9}, "clusters": {"seen": [1, 0, 2]}},
}  # fmt: skip


def test_the_documented_table_is_the_real_one() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert reference() in text, "make it again: python -m docs.metrics_reference"


def test_names_are_unique_and_labels_are_few() -> None:
    assert len({metric.name for metric in METRICS}) == len({metric.reads for metric in METRICS}) == len(METRICS)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", metric.name) and metric.description for metric in METRICS)
    assert {metric.label for metric in METRICS} == {
        None,
        "phase",
        "source",
        "split",
        "kind",
        "state",
        "count",
        "versions",
    }


def test_numbers_become_readings() -> None:
    numbers = {"learner/entropy": 0.5, "phases/learn": 0.1, "pass_at_1/a/b": 1.0, "evaluation_sources/x/y": 1.0,
               "reward/mean": float("nan"), "unknown": 1.0, "signal/own": 0.9}  # fmt: skip
    assert [(metric.name, label, value) for metric, label, value in readings(numbers)] == [
        ("entropy", "", 0.5),
        ("phase_seconds", "learn", 0.1),
        ("source_pass_at_1", "a/b", 1.0),
        ("signal_share", "own", 0.9),
    ]


def test_queues_actors_and_clusters_become_readings() -> None:
    found = {(metric.name, label): value for metric, label, value in readings(service_numbers(SERVICES))}
    assert found == {
        ("slots", ""): 8, ("groups", "in_flight"): 3, ("groups", "scored"): 1, ("groups", "ready"): 4,
        ("rollout_actors", "serving"): 1, ("rollout_actors", "away"): 1, ("actor_restarts", ""): 2,
        ("seen_groups", "groups"): 9, ("clusters", "all"): 3, ("clusters", "seen"): 2,
    }  # fmt: skip


@pytest.mark.parametrize("path", ["deploy/grafana/bvblend.json", "deploy/prometheus/alerts.yml"])
def test_what_ships_asks_for_metrics_that_are_there(path: str) -> None:
    used = set(re.findall(rf"{EXPORTED_PREFIX}(\w+)", Path(ROOT / path).read_text()))
    assert used and used <= {metric.name for metric in METRICS}


def test_the_dashboard_can_be_imported_and_explains_itself() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "bvblend.json").read_text())
    assert dashboard["schemaVersion"] >= 38 and "__inputs" not in dashboard
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "run"]
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in panels:
        assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all('run=~"$run"' in target["expr"] for target in panel["targets"])


def test_panels_do_not_overlap() -> None:
    panels = json.loads((ROOT / "deploy" / "grafana" / "bvblend.json").read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    (group,) = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}

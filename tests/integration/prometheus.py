"""A real Prometheus over the runs of one directory, and what ships for it."""

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, free_ports

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="no prometheus and promtool on the PATH (Debian's package is called prometheus)",
)
SHIPPED = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "bvblend.json"
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
        self._address = f"127.0.0.1:{free_ports(1)[0]}"
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

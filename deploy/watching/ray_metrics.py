"""A run's numbers as Ray metrics, which every Ray node exports to Prometheus."""

import threading
import time
from pathlib import Path
from urllib.parse import quote

import ray
from ray.util.metrics import Gauge

from deploy.watching.metric_table import METRICS, PREFIX, Metric, readings
from deploy.watching.sink import Numbers
from moments_service import durable

_PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))
REFRESH_S = 2.0
"""Ray exports only the gauges that were set since its last export, so they are set again and again, however long a step takes."""


class RayMetrics:
    """The gauges of one run.

    They are set by the driver: it is the one process that sees every phase, and a Ray worker like any other, so what it records
    leaves by the metrics port of its node. An actor of its own would be one more process that knows less. Ray exports every
    ten seconds, and forgets the gauges of a driver that ended after twenty more.

    The training loop only stores numbers; a thread sets the gauges, until `close`. What goes wrong there is raised by the next call.
    """

    def __init__(self, run: str, step: int, steps_wanted: int, target: Path) -> None:
        """step: policy steps done before.    target: where Prometheus finds the port, as a file for its `file_sd_configs`.

        Ray must be connected.
        """
        self._gauges = {
            metric.name: Gauge(
                f"{PREFIX}{metric.name}", metric.description, tuple(filter(None, ("run", metric.label)))
            ).set_default_tags({"run": label_value(run)})
            for metric in METRICS
        }
        self._values: dict[tuple[Metric, str], float] = {}
        self._alarms = 0
        self._keep(
            {"step": step, "steps_wanted": steps_wanted, "alarms": 0, "restarts": 0, "last_step_at": time.time()}
        )
        self._target = target
        self.address = export_address()
        if self.address is not None:
            durable.write_json(target, [{"targets": [self.address], "labels": {"job": "bvblend"}}])
        self._failure: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="metrics", daemon=True)
        self._thread.start()

    def log(self, step: int, numbers: Numbers) -> None:
        self._raise_failure()
        # An evaluation is no step: it must not hide that none was made.
        now = {"last_step_at": time.time()} if "seconds" in numbers else {}
        self._keep({**numbers, "step": step, **now})

    def alarm(self, step: int, text: str) -> None:
        self._raise_failure()
        self._alarms += 1
        self._keep({"alarms": self._alarms})

    def close(self, finished: bool) -> None:
        """Must come before Ray is shut down, which exports once more; on a cluster the last step is seen by that."""
        self._ended.set()
        self._thread.join()
        self._target.unlink(missing_ok=True)
        self._raise_failure()
        self.publish()

    def _keep(self, numbers: Numbers) -> None:
        self._values |= {(metric, label): value for metric, label, value in readings(numbers)}

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _refresh(self) -> None:
        """Consumes: the newest numbers. Waits for: the time of the next round. Ends: when closed, or by its first error."""
        while not self._ended.wait(REFRESH_S):
            try:
                self.publish()
            except Exception as error:  # Ray has no common error for what it does not take
                self._failure = error
                return

    def publish(self) -> None:
        """Set every gauge to its newest number."""
        for (metric, label), value in list(self._values.items()):
            self._gauges[metric.name].set(value, {metric.label: label_value(label)} if metric.label else None)


def label_value(text: str) -> str:
    """A label as Ray takes it, which is printable ASCII alone: anything else in percent-encoded UTF-8, as in an address."""
    return quote(text, safe=_PRINTABLE, errors="surrogatepass")


def export_address() -> str | None:
    """HOST:PORT where the driver's node exports metrics; None where Ray was told not to collect any."""
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    host, port = node["NodeManagerAddress"], node["MetricsExportPort"]
    if port <= 0:
        return None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

"""What it costs a run to be watched from outside: Ray metrics and trackers, by the rows of a real run.

usage: python -m benchmarks.watching --run runs/latest --out benchmarks/results/watching.json [--steps 300]

The driver's time is what the training loop spends before it goes on; the rest is CPU time of threads beside it, which counts as
if they took it from the loop. Shares are of a step of the demo, as benchmarks/results/demo.json has it.
"""

import argparse
import asyncio
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from benchmarks.figures import Figure, figure, write_figures
from deploy.cluster.environment import EnvironmentProblemError
from deploy.config.recipe import ConfigError
from deploy.rundir.find import find_run, load_run_config
from deploy.rundir.layout import RunDirectory
from deploy.rundir.metrics_index import numbers_of
from deploy.watching.ray_metrics import REFRESH_S, RayMetrics
from deploy.watching.sink import Sink, TrackedRun, service_numbers
from deploy.watching.trackers import MODULES, TrackerName, chosen_trackers, open_tracker
from deploy.watching.watchers import Watchers

DEMO = Path(__file__).parent / "results" / "demo.json"
MOST = 0.01
"""Of a step, for Ray metrics; trackers are off unless somebody asks for them."""
SERVICES: dict[str, Any] = {
    "slots": 64, "in_flight": 32, "scored": 0, "restarts": 0, "actors": [{"serving": True}] * 4,
    "moments": {"ready": 0, "counts": dict.fromkeys(("groups", "completions", "errors", "lost", "trained"), 1),
                "clusters": {"seen": [1] * 64}},
}  # fmt: skip


async def driver_seconds(run: RunDirectory, rows: list[dict[str, Any]], names: list[TrackerName]) -> float:
    """Median time that one step hands over in, to Ray metrics and the trackers."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = RunDirectory(Path(scratch))
        watching = Watchers.open(load_run_config(run), directory, 0, names, lambda text: print(text, flush=True))
        taken = []
        for row in rows:
            started = time.perf_counter()
            watching.step(row, SERVICES)
            taken.append(time.perf_counter() - started)
        await watching.close(finished=True)
    return statistics.median(taken)


def gauges_cpu_seconds(rows: list[dict[str, Any]]) -> float:
    """CPU time of setting all gauges once; the thread does it every REFRESH_S."""
    with tempfile.TemporaryDirectory() as scratch:
        metrics = RayMetrics("benchmark", 0, len(rows), Path(scratch) / "target.json")
        for row in rows:
            metrics.log(row["step"] + 1, numbers_of(row) | service_numbers(SERVICES))
        metrics.close(finished=True)
        return _cpu_seconds(metrics.publish, 200)


def tracker_cpu_seconds(name: TrackerName, config: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[float, float]:
    """CPU time of opening a tracker and of a step, in this process, threads of the tracker's own included."""
    with tempfile.TemporaryDirectory() as scratch:
        opened: list[Sink] = []
        tracked = TrackedRun("benchmark", Path(scratch), config, 0)
        opening = _cpu_seconds(lambda: opened.append(open_tracker(name, tracked)), 1)
        started = time.process_time()
        for row in rows:
            opened[0].log(row["step"] + 1, numbers_of(row) | service_numbers(SERVICES))
        opened[0].close(finished=True)
        return opening, (time.process_time() - started) / len(rows)


def _cpu_seconds(call: Callable[[], object], times: int) -> float:
    started = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - started) / times


def measure(run: RunDirectory, steps: int) -> list[Figure]:
    found = run.read_metrics()
    rows = [{**found[step % len(found)], "step": step} for step in range(steps)]
    step_s = next(
        row["value"] for row in json.loads(DEMO.read_text(encoding="utf-8"))["figures"] if row["name"] == "step"
    )
    names = [name for name in MODULES if _installed(name)]
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    driver = asyncio.run(driver_seconds(run, rows, []))
    driver_all = asyncio.run(driver_seconds(run, rows, names))
    gauges = gauges_cpu_seconds(rows) / REFRESH_S
    config = load_run_config(run).model_dump(mode="json")
    trackers = {name: tracker_cpu_seconds(name, config, rows) for name in names}
    ray.shutdown()
    everything = driver_all / step_s + gauges + sum(each for _, each in trackers.values()) / step_s
    figures = [
        figure("driver, Ray metrics", 1e6 * driver, "us/step"),
        figure(f"driver, Ray metrics and {len(names)} trackers", 1e6 * driver_all, "us/step"),
        figure("CPU of the thread that sets gauges, share of a step", gauges, "1"),
        figure("Ray metrics, share of a step of the demo", driver / step_s + gauges, "1", target=MOST),
    ]
    for name, (opening, each) in trackers.items():
        figures.append(figure(f"CPU of {name}", 1e6 * each, "us/step"))
        figures.append(figure(f"CPU of {name}, share of a step of the demo", each / step_s, "1"))
        figures.append(figure(f"CPU of opening {name} once, without its imports", opening, "s"))
    figures.append(figure("all of it together, every tracker too, share of a step of the demo", everything, "1"))
    return figures


def _installed(name: TrackerName) -> bool:
    try:
        return bool(chosen_trackers(name, None))
    except EnvironmentProblemError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    try:
        run = find_run(arguments.run)
    except ConfigError as error:
        parser.error(str(error))
    write_figures(arguments.out, measure(run, arguments.steps))


if __name__ == "__main__":
    main()

"""Everything outside of the run directory that is told how a run goes."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from deploy.config.models import RunConfig
from deploy.rundir.evaluation import Evaluation
from deploy.rundir.layout import RunDirectory
from deploy.rundir.metrics_index import numbers_of
from deploy.watching.ray_metrics import RayMetrics
from deploy.watching.sink import Sink, TrackedRun, service_numbers
from deploy.watching.trackers import TrackerName, Tracking, open_tracker
from moments_service.health import Alarm

CLOSE_TIMEOUT_S = 20.0
"""What all trackers together get at the end for what they have not written yet."""


class Watchers:
    """Ray metrics and the trackers of a run. Used in the driver's event loop; nothing here waits but `close`."""

    def __init__(self, metrics: Sink | None = None, trackers: tuple[Tracking, ...] = ()) -> None:
        self._trackers = trackers
        self._sinks: tuple[Sink, ...] = (*((metrics,) if metrics is not None else ()), *trackers)

    @classmethod
    def open(
        cls,
        config: RunConfig,
        directory: RunDirectory,
        step: int,
        names: Sequence[TrackerName],
        note: Callable[[str], None],
    ) -> "Watchers":
        """Watchers of a run that has made `step` steps. Ray must be connected.

        note: shows a line to people; called in the event loop that this is called in.
        """
        loop = asyncio.get_running_loop()

        def say(text: str) -> None:
            if not loop.is_closed():  # it is where the run gave up waiting for a tracker
                loop.call_soon_threadsafe(note, text)

        shown = config.model_dump(mode="json")
        trackers = []
        for name in names:
            place = directory.trackers / name
            place.mkdir(parents=True, exist_ok=True)
            tracked = TrackedRun(directory.path.name, place, shown, step)
            trackers.append(Tracking(name, partial(open_tracker, name, tracked), say))
        metrics = RayMetrics(directory.path.name, step, config.steps, directory.scrape_target)
        if metrics.address is not None:
            note(f"metrics at http://{metrics.address}/metrics")
        return cls(metrics, tuple(trackers))

    def step(self, row: Mapping[str, Any], services: Mapping[str, Any]) -> None:
        """A step ended. row: its line of metrics.jsonl.    services: what live.json holds after it."""
        done = row["step"] + 1
        numbers = numbers_of(row) | service_numbers(services) | {"step": done}
        for sink in self._sinks:
            sink.log(done, numbers)

    def evaluation(self, step: int, split: str, evaluation: Evaluation) -> None:
        sources = {f"evaluation_sources/{split}/{source}": value for source, value in evaluation.sources.items()}
        whole = {} if evaluation.pass_at_1 is None else {f"evaluation/{split}": evaluation.pass_at_1}
        for sink in self._sinks:
            sink.log(step, whole | sources)

    def alarm(self, step: int, alarm: Alarm) -> None:
        for sink in self._sinks:
            sink.alarm(step, str(alarm))

    async def close(self, finished: bool) -> None:
        """End everything; trackers get CLOSE_TIMEOUT_S to write what waits. finished: whether all steps were made."""
        for sink in self._sinks:
            sink.close(finished)
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        await asyncio.gather(*(asyncio.to_thread(tracker.wait, deadline) for tracker in self._trackers))

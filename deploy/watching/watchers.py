"""Everything outside of the run directory that is told how a run goes."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from deploy.config.models import RunConfig
from deploy.rundir.evaluation import Evaluation
from deploy.rundir.layout import RunDirectory
from deploy.rundir.metrics_index import numbers_of
from deploy.watching.ray_metrics import RayMetrics
from deploy.watching.sink import Sink, TrackedRun, service_numbers
from deploy.watching.trackers import TrackerName, Tracking, given_up, open_tracker
from moments_service.health import Alarm

METRICS_NAME = "Ray's metrics"
CLOSE_TIMEOUT_S = 20.0
"""What all trackers together get at the end for what they have not written yet."""


class Watchers:
    """Ray metrics and the trackers of a run. Used in the driver's event loop; nothing here waits but `close`.

    No watcher ends a run: one that raises is said once, and told nothing more.
    """

    def __init__(self, say: Callable[[str], None], metrics: Callable[[], Sink], trackers: tuple[Tracking, ...]) -> None:
        """say: shows a line to people.    metrics: opens Ray's metrics."""
        self._say = say
        self._trackers = trackers
        self._sinks: dict[str, Sink] = {f"tracker {tracker.name}": tracker for tracker in trackers}
        with self._survived(METRICS_NAME):
            self._sinks[METRICS_NAME] = metrics()

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
            tracked = TrackedRun(directory.path.name, directory.trackers / name, shown, step)
            trackers.append(Tracking(name, partial(open_tracker, name, tracked), say))

        def metrics() -> Sink:
            opened = RayMetrics(directory.path.name, step, config.steps, directory.scrape_target)
            if opened.address is not None:
                note(f"metrics at http://{opened.address}/metrics")
            return opened

        return cls(note, metrics, tuple(trackers))

    def step(self, row: Mapping[str, Any], services: Mapping[str, Any]) -> None:
        """A step ended. row: its line of metrics.jsonl.    services: what live.json holds after it."""
        done = row["step"] + 1
        numbers = numbers_of(row) | service_numbers(services) | {"step": done}
        self._tell(lambda sink: sink.log(done, numbers))

    def evaluation(self, step: int, split: str, evaluation: Evaluation) -> None:
        sources = {f"evaluation_sources/{split}/{source}": value for source, value in evaluation.sources.items()}
        whole = {} if evaluation.pass_at_1 is None else {f"evaluation/{split}": evaluation.pass_at_1}
        self._tell(lambda sink: sink.log(step, whole | sources))

    def alarm(self, step: int, alarm: Alarm) -> None:
        self._tell(lambda sink: sink.alarm(step, str(alarm)))

    async def close(self, finished: bool) -> None:
        """End everything; trackers get CLOSE_TIMEOUT_S to write what waits. finished: whether all steps were made."""
        self._tell(lambda sink: sink.close(finished))
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        await asyncio.gather(*(asyncio.to_thread(tracker.wait, deadline) for tracker in self._trackers))

    def _tell(self, call: Callable[[Sink], None]) -> None:
        for name, sink in list(self._sinks.items()):
            with self._survived(name):
                call(sink)

    @contextmanager
    def _survived(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each watcher raises errors of its own kind
            self._sinks.pop(name, None)
            self._say(given_up(name, f"{type(error).__name__}: {error}"))

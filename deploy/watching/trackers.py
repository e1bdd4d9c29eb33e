"""Trackers by name, and what stands between one and the training loop."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Literal, assert_never, get_args

from deploy.cluster.environment import EnvironmentProblemError
from deploy.config.recipe import ConfigError
from deploy.rundir.layout import RunDirectory
from deploy.watching.sink import Numbers, Sink, TrackedRun
from moments_service.suggestions import nearest

TrackerName = Literal["tensorboard", "wandb", "mlflow"]

MODULES: dict[TrackerName, tuple[str, ...]] = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
"""What each tracker imports; the extra of the same name installs it."""
MOST_WAITING = 1000
"""Calls that a tracker may be behind before it is given up."""


def chosen_trackers(track: str | None, resumed: RunDirectory | None) -> tuple[TrackerName, ...]:
    """The trackers that `--track` names, and those that a resumed run had.

    They are no part of the configuration: a run is the same run, whoever watches. Raises ConfigError for a name that there is
    not, and EnvironmentProblemError for a tracker that is not installed.
    """
    known = get_args(TrackerName)
    named = track.split(",") if track is not None else []
    if unknown := [name for name in named if name not in known]:
        raise ConfigError(f"--track {track}: there is no {unknown[0]}{nearest(unknown[0], known)}")
    had = {path.name for path in resumed.trackers.glob("*")} if resumed is not None else set()
    names = tuple(name for name in known if name in named or name in had)
    _refuse_missing(names)
    return names


def _refuse_missing(names: Sequence[TrackerName]) -> None:
    for name in names:
        missing = [module for module in MODULES[name] if find_spec(module) is None]
        if missing:
            raise EnvironmentProblemError(
                f"--track {name}: it needs {' and '.join(missing)}, not installed here; the extra has it: "
                f"pip install -c deploy/constraints.txt -e '.[{name}]', or `make install-trackers` for all of them"
            )


def open_tracker(name: TrackerName, run: TrackedRun) -> Sink:
    """Open a tracker for a run; takes seconds, most of them imports. Raises whatever the tracker raises."""
    run.directory.mkdir(parents=True, exist_ok=True)
    if name == "tensorboard":
        from deploy.watching.tensorboard import TensorBoardSink

        return TensorBoardSink(run)
    if name == "wandb":
        from deploy.watching.wandb import WandbSink

        return WandbSink(run)
    if name == "mlflow":
        from deploy.watching.mlflow import MlflowSink

        return MlflowSink(run)
    assert_never(name)


def given_up(watcher: str, why: str) -> str:
    """What people are told of a watcher that is left alone from now on."""
    return f"{watcher}: {why}; the run goes on without it, metrics.jsonl has everything"


class Tracking:
    """A tracker in a thread of its own, so that neither its imports nor its network hold up a step.

    Producer: the training loop, which never waits. Consumer: the thread. Bound: MOST_WAITING calls. A tracker that fails, or
    is that far behind, is said once and left alone for the rest of the run; the run goes on. At the end `close` asks for what
    waits to be written, and `wait` bounds that; the thread is a daemon.
    """

    def __init__(self, name: str, opened: Callable[[], Sink], say: Callable[[str], None]) -> None:
        """say: called from the thread."""
        self.name = name
        self._say = say
        self._calls: queue.Queue[Callable[[Sink], None]] = queue.Queue(MOST_WAITING)
        self._given_up = False
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(opened,), name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, step: int, numbers: Numbers) -> None:
        self._call(lambda sink: sink.log(step, numbers))

    def alarm(self, step: int, text: str) -> None:
        self._call(lambda sink: sink.alarm(step, text))

    def close(self, finished: bool) -> None:
        """Does not wait for it; see `wait`."""
        self._call(partial(self._close, finished))

    def wait(self, deadline: float) -> None:
        """Wait until everything is written or given up. deadline: of time.monotonic()."""
        if not self._ended.wait(max(0.0, deadline - time.monotonic())):
            self._give_up(f"did not end in time; about {self._calls.qsize()} reports may be missing there")

    def _call(self, call: Callable[[Sink], None]) -> None:
        if self._given_up:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._give_up(f"is {MOST_WAITING} reports behind")

    def _close(self, finished: bool, sink: Sink) -> None:
        sink.close(finished)
        self._ended.set()

    def _work(self, opened: Callable[[], Sink]) -> None:
        try:
            sink = opened()
            while not self._ended.is_set() and not self._given_up:
                self._calls.get()(sink)
        except Exception as error:  # each tracker raises errors of its own kind
            self._give_up(f"{type(error).__name__}: {error}")
        finally:
            self._ended.set()

    def _give_up(self, why: str) -> None:
        with self._lock:  # the thread may fail while the driver stops waiting for it
            known, self._given_up = self._given_up, True
        if not known:
            self._say(given_up(f"tracker {self.name}", why))

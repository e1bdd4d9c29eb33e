"""Stopping by hand: what Ctrl-C, SIGTERM, SIGHUP and `ray job stop` mean in each part of a run's life."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.run import signals
from deploy.run.errors import StoppedByHandError, in_a_sentence
from deploy.run.run import Run


class Stopper:
    """Consumes: the signals that ask for an end, from when the first part of a run is started until the last one has ended.

    starting   the parts are dropped
    training   ends after the policy step under way, or at once where none is, or after `checkpoint.stop_grace_s`; then a checkpoint
    ending     the last uploads are given up
    Once more, at any time: whatever is under way is dropped, the checkpoint too.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        """note: shows a line to people.    Made in the task that starts and ends the run."""
        self.asked = False
        self._note = note
        main = asyncio.current_task()
        assert main is not None
        self._main = main
        self._run: Run | None = None
        self._training: asyncio.Task[Any] | None = None

    def watch(self, run: Run, training: "asyncio.Task[Any]") -> None:
        """The parts stand, and the run is training."""
        self._run, self._training = run, training

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Whatever signals meant before, they mean again afterwards."""
        loop, before = asyncio.get_running_loop(), {number: signal.getsignal(number) for number in signals.heard()}
        for number in before:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def stop(self) -> None:
        """Somebody asked for the end."""
        if signals.is_echo():
            return
        again, self.asked = self.asked, True
        run, training = self._run, self._training
        if run is None or training is None:
            self._main.cancel()
        elif not training.done():
            self._stop_training(run, training)
        elif again:
            self._main.cancel()
        elif run.mirror is not None:
            run.mirror.give_up()

    def _stop_training(self, run: Run, training: "asyncio.Task[Any]") -> None:
        if run.stopping or run.clock.phase in (None, "generate"):
            training.cancel()
            return
        run.stopping = True
        grace_s = run.config.checkpoint.stop_grace_s
        self._note(f"stopping after this step, or without it in {grace_s:g} s; once more drops it now")
        asyncio.get_running_loop().call_later(grace_s, training.cancel)


def as_asked(error: BaseException, run: Path) -> BaseException:
    """Why a run ended: `error`, or that somebody had asked for its end, which then did not come in order: parts of the run die of a
    signal that a scheduler sends to every process of a job."""
    in_order = isinstance(error, StoppedByHandError | KeyboardInterrupt)
    if in_order or not signals.asked.wait(signals.REACHED_S):
        return error
    stopped = StoppedByHandError(
        f"stopped, and no checkpoint was written then ({in_a_sentence(error)}); go on with --resume {run} from the one before"
    )
    stopped.__cause__ = error
    return stopped

"""Where the time of a step goes, and which phase of it a run is in."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from deploy.run.errors import in_a_sentence


class PhaseError(RuntimeError):
    """A phase of the training loop failed; the message names it, and the cause is chained."""


class Clock:
    """Times the phases of a step. A step's time holds neither evaluations nor checkpoints."""

    def __init__(self) -> None:
        self.phase: str | None = None
        """The phase that the run is in; None between two."""
        self.interrupted: str | None = None
        """The phase that a cancellation fell into; a checkpoint is only whole outside of the phases that change state."""
        self._seconds: dict[str, float] = defaultdict(float)
        self._step_started = time.perf_counter()

    @contextmanager
    def timed(self, name: str, step: int, *, passed: tuple[type[Exception], ...]) -> Iterator[None]:
        """Time one phase of `step`, and give its name to whatever goes wrong in it.

        passed: errors that are not of the phase and go through as they are.
        """
        started = time.perf_counter()
        self.phase = name
        try:
            yield
        except asyncio.CancelledError:
            self.interrupted = name
            raise
        except passed:
            raise
        except Exception as error:
            raise PhaseError(f"step {step}, phase {name}: {in_a_sentence(error)}") from error
        finally:
            self._seconds[name] += time.perf_counter() - started
            self.phase = None

    def start_step(self) -> None:
        """The step begins now."""
        self._step_started = time.perf_counter()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens in here belongs to no step."""
        started = time.perf_counter()
        yield
        self._step_started += time.perf_counter() - started

    def end_step(self) -> tuple[float, dict[str, float]]:
        """(seconds of the step, of each of its phases); the next step begins now."""
        now = time.perf_counter()
        seconds, self._step_started = now - self._step_started, now
        phases = dict(self._seconds)
        self._seconds.clear()
        return seconds, phases

"""Checkpoints of a run: everything that the next step depends on, complete or absent; and its moments at the end."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from deploy.config.models import CheckpointConfig
from deploy.run.errors import CheckpointFailedError, in_a_sentence
from deploy.run.remote import Remote
from deploy.rundir.layout import RunDirectory
from deploy.rundir.resume import PROMPTS_FILE
from learner.group import LearnerGroup
from moments_service import durable

logger = logging.getLogger(__name__)


class Checkpoints:
    """Writes them when due, one at a time, while the run goes on: a step waits only until everything is copied.

    States: idle -> copying -> writing -> idle. A checkpoint that was begun is finished, also where whoever asked for it was cancelled;
    what goes wrong with it is raised once, by the next of `write`, `written` and `refuse_failed`. Ends: `close` waits for it.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        directory: RunDirectory,
        learner: LearnerGroup,
        moments: Remote,
        on_written: Callable[[], None] = lambda: None,
    ) -> None:
        """on_written: called whenever a checkpoint is complete."""
        self._config = config
        self._directory = directory
        self._learner = learner
        self._moments = moments
        self._on_written = on_written
        self._last = -1
        self._writing: asyncio.Task[None] | None = None
        self._seconds: dict[str, float] = {}

    def due(self, step: int) -> bool:
        """Whether one is to be written after so many steps."""
        return self._config.every > 0 and step % self._config.every == 0

    async def write(
        self, step: int, state: Callable[[], dict[str, Any]], prompts: Callable[[], dict[str, str]]
    ) -> None:
        """Begin the checkpoint of `step`, unless it stands already. Only between two steps; returns when the next may begin.

        state: of the driver, as JSON; asked when the writing begins.    prompts: fingerprints of all that are dealt.
        """
        began = time.perf_counter()
        await self.written()
        if self._last == step:
            return
        copied = asyncio.Event()
        self._writing = asyncio.create_task(
            self._write(step, state(), prompts(), copied), name=f"checkpoint of step {step}"
        )
        copying = asyncio.create_task(copied.wait(), name="copying")
        try:
            await asyncio.wait({self._writing, copying}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            copying.cancel()
        self._seconds["wait_s"] = time.perf_counter() - began
        await self.refuse_failed()

    async def written(self) -> None:
        """Returns when no checkpoint is being written. Raises CheckpointFailedError where one could not be."""
        while (writing := self._writing) is not None:
            await asyncio.wait({writing})
            if self._writing is writing:
                self._writing = None
                writing.result()

    async def refuse_failed(self) -> None:
        """Raise CheckpointFailedError where a checkpoint could not be written, as soon as that is known."""
        if self._writing is not None and self._writing.done():
            await self.written()

    def restored(self, step: int) -> None:
        """The run goes on from the checkpoint of `step`."""
        self._last = step

    def take_seconds(self) -> dict[str, float]:
        """Since the last call: how long a step waited for a checkpoint (`wait_s`), and how long one was written (`write_s`)."""
        seconds, self._seconds = self._seconds, {}
        return {f"checkpoint/{name}": value for name, value in seconds.items()}

    async def keep_moments(self) -> None:
        """Leave the moments of a run that is done where `bvblend moments export` finds them."""
        with durable.whole_directory(self._directory.final_moments) as partial:
            await self._moments.snapshot(str(partial))

    async def close(self) -> None:
        """The run ends, for whatever reason: let a checkpoint that was begun become whole first."""
        try:
            await self.written()
        except CheckpointFailedError as error:  # nobody is left who could be told otherwise
            logger.warning("%s", error)

    async def _write(self, step: int, state: dict[str, Any], prompts: dict[str, str], copied: asyncio.Event) -> None:
        began = time.perf_counter()
        try:
            partial = self._directory.begin_checkpoint(step)
            for part in ("learner", "moments"):
                (partial / part).mkdir()
            await self._learner.capture()
            await self._moments.snapshot(str(partial / "moments"))
            copied.set()
            await self._learner.write(str(partial / "learner"))
            await asyncio.to_thread(durable.write_json, partial / PROMPTS_FILE, prompts)
            durable.write_json(partial / "run.json", state)
            await asyncio.to_thread(self._directory.finish_checkpoint, partial, step, self._config.keep)
        except Exception as error:
            raise CheckpointFailedError(
                f"the checkpoint of step {step} could not be written: {in_a_sentence(error)}; --resume goes on from the one before"
            ) from error
        self._last = step
        self._seconds["write_s"] = time.perf_counter() - began
        self._on_written()

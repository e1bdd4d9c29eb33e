"""Checkpoints of a run: everything that the next step depends on, complete or absent; and its moments at the end."""

import asyncio
from collections.abc import Callable
from typing import Any

from deploy.config.models import CheckpointConfig
from deploy.run.remote import Remote
from deploy.rundir.layout import RunDirectory
from deploy.rundir.resume import PROMPTS_FILE
from learner.group import LearnerGroup
from moments_service import durable


class Checkpoints:
    """Writes them when due, one at a time; a checkpoint that was begun is finished, also where whoever asked for it was cancelled."""

    def __init__(
        self, config: CheckpointConfig, directory: RunDirectory, learner: LearnerGroup, moments: Remote
    ) -> None:
        self._config = config
        self._directory = directory
        self._learner = learner
        self._moments = moments
        self._last = -1
        self._writing: asyncio.Task[None] | None = None

    def due(self, step: int) -> bool:
        """Whether one is to be written after so many steps."""
        return self._config.every > 0 and step % self._config.every == 0

    async def write(
        self, step: int, state: Callable[[], dict[str, Any]], prompts: Callable[[], dict[str, str]]
    ) -> None:
        """Write the checkpoint of `step`, unless it stands already. Only between two steps.

        state: of the driver, as JSON; asked when the writing begins.    prompts: fingerprints of all that are dealt.
        """
        if self._writing is not None:
            await asyncio.shield(self._writing)
        if self._last == step:
            return
        self._writing = asyncio.create_task(self._write(step, state(), prompts()), name=f"checkpoint of step {step}")
        await asyncio.shield(self._writing)
        self._writing = None

    def restored(self, step: int) -> None:
        """The run goes on from the checkpoint of `step`."""
        self._last = step

    async def keep_moments(self) -> None:
        """Leave the moments of a run that is done where `bvblend moments export` finds them."""
        with durable.whole_directory(self._directory.final_moments) as partial:
            await self._moments.snapshot(str(partial))

    async def _write(self, step: int, state: dict[str, Any], prompts: dict[str, str]) -> None:
        partial = self._directory.begin_checkpoint(step)
        for part in ("learner", "moments"):
            (partial / part).mkdir()
        await self._learner.save(str(partial / "learner"))
        await self._moments.snapshot(str(partial / "moments"))
        await asyncio.to_thread(durable.write_json, partial / PROMPTS_FILE, prompts)
        durable.write_json(partial / "run.json", state)
        await asyncio.to_thread(self._directory.finish_checkpoint, partial, step, self._config.keep)
        self._last = step

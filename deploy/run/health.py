"""What a run does when something looks broken: says so, and goes on, pauses or stops, as it is told to."""

import asyncio
from collections.abc import Callable, Sequence

from deploy.rundir.layout import RunDirectory
from deploy.watching.watchers import Watchers
from moments_service import durable
from moments_service.config import HealthConfig
from moments_service.health import Alarm, many_errors

PAUSE_POLL_S = 1.0
"""How often a paused run looks whether a person wants it to go on."""


class HealthStopError(RuntimeError):
    """An alarm went off, and `moments.health.reaction` is to stop."""


class HealthGuard:
    """Reacts to alarms, before anything is learned from the batch that raised them."""

    def __init__(
        self, config: HealthConfig, directory: RunDirectory, watchers: Watchers, note: Callable[[str], None]
    ) -> None:
        """note: shows a line to people."""
        self._config = config
        self._directory = directory
        self._watchers = watchers
        self._note = note

    async def nothing_scored(self, step: int) -> None:
        """As many groups as a batch came back in a row without any reward."""
        await self.react(step, [many_errors(self._config.error_share, 1.0)])

    async def react(self, step: int, alarms: Sequence[Alarm]) -> None:
        """A paused run waits until somebody removes `RUN/paused`. Raises HealthStopError where the run is to stop."""
        for alarm in alarms:
            self._note(f"step {step}: ALARM: {alarm}")
            self._directory.append_alarm(step, alarm)
            self._watchers.alarm(step, alarm)
        if not alarms or self._config.reaction == "log":
            return
        happened = "; ".join(str(alarm) for alarm in alarms)
        if self._config.reaction == "stop":
            raise HealthStopError(
                f"{happened} (moments.health.reaction: stop). Nothing was learned from this batch; look at the verifier, then "
                f"go on with --resume {self._directory.path}"
            )
        await self._pause(happened)

    async def _pause(self, happened: str) -> None:
        durable.write_text(self._directory.paused, f"{happened}\nRemove this file to go on.\n")
        self._note(f"paused; remove {self._directory.paused} to go on")
        try:
            while self._directory.paused.exists():  # noqa: ASYNC110 - a person removes the file, and nothing tells us
                await asyncio.sleep(PAUSE_POLL_S)
        finally:
            self._directory.paused.unlink(missing_ok=True)

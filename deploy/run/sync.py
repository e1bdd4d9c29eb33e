"""The policy on its way from the learner to everything that samples."""

import asyncio
from typing import Any, Protocol

from actors.weights.offer import WeightOffer, WeightSource


class Delivers(Protocol):
    """Takes an offer to every sink that serves."""

    async def deliver(self, offer: WeightOffer) -> None: ...


class WeightSync:
    """Push and pull of the weights, as two events: the learner made its offer, and every serving engine took it.

    States: settled -> pushing -> pulling -> settled; `start` leads out of settled only. Waits for: the learner, then the fleet, each with
    a deadline of its own. What goes wrong in either is raised by `pushed` and `settle`. Ends: `close` drops what is under way.
    """

    def __init__(self, learner: WeightSource, fleet: Delivers) -> None:
        self._learner = learner
        self._fleet = fleet
        self._push: asyncio.Task[WeightOffer] | None = None
        self._pull: asyncio.Task[None] | None = None

    def start(self, version: int) -> None:
        """Begin to send the policy as it is now, as `version`. Returns at once."""
        if self._pull is not None:
            raise RuntimeError(f"version {version} cannot be sent while the one before it is on its way")
        self._push = asyncio.create_task(self._learner.offer(version), name=f"offer version {version}")
        self._pull = asyncio.create_task(self._deliver(self._push), name=f"deliver version {version}")

    async def pushed(self) -> None:
        """Returns when the learner may change its weights again."""
        if self._push is not None:
            await asyncio.shield(self._push)

    async def settle(self) -> None:
        """Returns when every engine that serves holds the newest weights."""
        if self._pull is not None:
            await asyncio.shield(self._pull)
            self._push = self._pull = None

    async def close(self) -> None:
        """Drop what is under way."""
        tasks: list[asyncio.Task[Any]] = [task for task in (self._push, self._pull) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(self, push: "asyncio.Task[WeightOffer]") -> None:
        await self._fleet.deliver(await push)

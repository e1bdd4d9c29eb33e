"""A reward pool in an event loop of its own: what passes between it and its processes waits for nothing that an engine does."""

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from actors.config import RewardsConfig
from actors.prompts.prompt import Prompt
from actors.rewards.pool import RewardPool
from actors.rewards.protocol import Attempt, Verdict

T = TypeVar("T")


class RewardThread:
    """`RewardPool` for a caller whose own event loop is busy; every call is the pool's, see there.

    Some thirty groups end at once, and each is passed to a process and back in several turns of the loop: in the loop of an engine
    they would queue behind each other. Ends: with `close`, or with the process.
    """

    def __init__(self, config: RewardsConfig) -> None:
        self._pool = RewardPool(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True)
        self._thread.start()

    async def start(self, verifiers: Iterable[str] = ()) -> None:
        await self._there(self._pool.start(verifiers))

    async def judge(self, prompt: Prompt, attempts: Sequence[Attempt]) -> list[Verdict]:
        return await self._there(self._pool.judge(prompt, attempts))

    async def close(self) -> None:
        """May be called twice."""
        if self._thread.is_alive():
            await self._there(self._pool.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            await asyncio.to_thread(self._thread.join)
            self._loop.close()

    async def _there(self, call: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))

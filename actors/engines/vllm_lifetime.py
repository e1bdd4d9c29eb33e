"""Whether vLLM's engine is there: its own calls wait for ever where it dies before it answers."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from vllm.v1.engine.async_llm import AsyncLLM

from actors.engines.protocol import EngineDeadError

T = TypeVar("T")


class EngineLifetime:
    """The processes of one engine, from its start to their end or ours.

    Waits for: the end of any of them, which the kernel tells the event loop that this was made in. Ended by: `close`, which
    comes before the processes are ended on purpose.
    """

    def __init__(self, llm: AsyncLLM, on_end: Callable[[EngineDeadError], None]) -> None:
        """on_end: called once, in the event loop, when a process ended by itself."""
        manager = llm.engine_core.resources.engine_manager
        assert manager is not None
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[EngineDeadError] = self._loop.create_future()
        # Copies: vLLM closes its own when it cleans up after a death.
        self._sentinels = {os.dup(process.sentinel): process.name for process in manager.processes}
        for sentinel in self._sentinels:
            self._loop.add_reader(sentinel, self._ended, sentinel)

    async def during(self, call: Coroutine[Any, Any, T]) -> T:
        """What `call` returns. Raises EngineDeadError where the engine ends before it does."""
        answer = asyncio.ensure_future(call)
        try:
            either: set[asyncio.Future[Any]] = {answer, self._over}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise self._over.result()
            return answer.result()
        finally:
            answer.cancel()

    def close(self) -> None:
        """Watch no longer; who waits in `during` raises. May be called twice."""
        if not self._over.done():
            self._over.set_result(EngineDeadError("vLLM's engine was closed"))
        while self._sentinels:
            sentinel, _ = self._sentinels.popitem()
            self._loop.remove_reader(sentinel)
            os.close(sentinel)

    def _ended(self, sentinel: int) -> None:
        error = EngineDeadError(f"vLLM's process {self._sentinels[sentinel]} died")
        self._over.set_result(error)
        self.close()
        self._on_end(error)

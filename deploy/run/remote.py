"""An actor whose every call has a deadline: a service that hangs is named, and hangs nobody else."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


class Remote:
    """An actor's methods as coroutines of this process: `await moments.draw(step, ids)`. A call is sent when it is made.

    Each raises TimeoutError, naming actor and method, where it is not answered within `timeout_s`.
    """

    def __init__(self, actor: Any, name: str, timeout_s: float) -> None:
        """name: what the actor is called in messages."""
        self.actor = actor
        self._name = name
        self._timeout_s = timeout_s

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        remote = getattr(self.actor, method).remote
        return lambda *arguments: self._answer(remote(*arguments), method)

    async def _answer(self, call: Any, method: str) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                return await call
        except TimeoutError:
            if not deadline.expired():  # the actor's own
                raise
            raise TimeoutError(
                f"{self._name} did not answer {method} in {self._timeout_s:g} s (stall_timeout_s)"
            ) from None

"""An actor whose every call has a deadline: a service that hangs is named, and hangs nobody else."""

import asyncio
from typing import Any


class Punctual:
    """Calls as on the actor itself, `await punctual.method.remote(...)`; each raises TimeoutError past `timeout_s`."""

    def __init__(self, actor: Any, name: str, timeout_s: float) -> None:
        """name: what the actor is called in messages."""
        self.actor = actor
        self._name = name
        self._timeout_s = timeout_s

    def __getattr__(self, method: str) -> "_Call":
        return _Call(getattr(self.actor, method), f"{self._name} did not answer {method}", self._timeout_s)


class _Call:
    def __init__(self, method: Any, late: str, timeout_s: float) -> None:
        self._method = method
        self._late = late
        self._timeout_s = timeout_s

    def remote(self, *arguments: Any) -> Any:
        """Sends the call now; what it returns is to be awaited."""
        return self._answer(self._method.remote(*arguments))

    async def _answer(self, call: Any) -> Any:
        try:
            return await asyncio.wait_for(call, self._timeout_s)
        except TimeoutError:
            raise TimeoutError(f"{self._late} in {self._timeout_s:g} s (stall_timeout_s)") from None

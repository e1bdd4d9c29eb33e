"""An actor whose every call has a deadline: a service that hangs is named, and hangs nobody else."""

from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayActorError

from actors.deadline import within
from deploy.run.errors import ServiceDiedError, in_a_sentence


class Remote:
    """An actor's methods as coroutines of this process: `await moments.draw(step, ids)`. A call is sent when it is made.

    Each raises LateError where it is not answered within `timeout_s`, and ServiceDiedError where the actor is dead; both name actor and
    method.
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
        late = f"{self._name} did not answer {method} in {self._timeout_s:g} s (stall_timeout_s)"
        try:
            return await within(self._timeout_s, call, lambda: late)
        except RayActorError as error:
            raise ServiceDiedError(f"{self._name} died before it answered {method}: {in_a_sentence(error)}") from error

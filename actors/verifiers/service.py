"""A service that is asked over HTTP about a completion: again where that may help, within bounds of time and size.

Whatever goes wrong is raised, and so an error of the completion: no answer is never a reward.
"""

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

LARGEST_ANSWER = 1 << 20
"""Bytes; a service that sends more is not listened to."""
EXCERPT = 120
"""Characters of what a service says against a request that stand in an error."""
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may be others when asked again."""

T = TypeVar("T")


class ServiceError(RuntimeError):
    """The service gave no answer that can be used; the message says why."""


class PassingError(ServiceError):
    """One that may be gone when the service is asked again."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        """wait_s: how long the service wants to be left alone."""
        super().__init__(message)
        self.wait_s = wait_s


class Service:
    """POSTs JSON to one address. Waits for: each answer, all tries of it together at most `seconds`."""

    def __init__(self, url: str, key: str | None, seconds: float, tries: int, concurrent: int) -> None:
        """key: name of the environment variable that holds the bearer token. Raises ServiceError where there is none.

        concurrent: connections; who calls sees to it that there are not more calls, since those would wait within their `seconds`.
        """
        self._url, self._seconds, self._tries = url, seconds, tries
        # Not compressed: what is bounded is what arrives.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"} | _authorization(key)
        self._client = httpx.AsyncClient(
            headers=headers, limits=httpx.Limits(max_connections=concurrent), timeout=seconds
        )

    async def ask(
        self, question: Mapping[str, Any], read: Callable[[Any], T], before: Callable[[], None] = lambda: None
    ) -> T:
        """What `read` makes of the answer's JSON; where it raises ValueError the service is asked again. Raises ServiceError.

        before: called before every try; what it raises is raised.
        """
        body = json.dumps(question, default=str, allow_nan=False).encode()
        failures: list[str] = []

        def paused(state: RetryCallState) -> None:
            assert state.outcome is not None
            failures.append(str(state.outcome.exception()))

        async def once() -> T:
            before()
            return _read(await self._answer(body), read)

        trying = AsyncRetrying(
            retry=retry_if_exception_type(PassingError),
            stop=stop_after_attempt(self._tries),
            wait=_pause,
            before_sleep=paused,
            reraise=True,
        )
        try:
            async with asyncio.timeout(self._seconds):
                return await trying(once)
        except TimeoutError:
            before_that = f"; before that: {failures[-1]}" if failures else ""
            raise ServiceError(f"{self._url} gave no answer in {self._seconds:g} s{before_that}") from None
        except ServiceError as error:
            raise ServiceError(f"{self._url} {error}") from error

    async def close(self) -> None:
        await self._client.aclose()

    async def _answer(self, body: bytes) -> bytes:
        """The body of an answer whose status is 2xx."""
        received = bytearray()
        try:
            async with self._client.stream("POST", self._url, content=body) as answer:
                async for chunk in answer.aiter_raw():
                    received += chunk
                    if len(received) > LARGEST_ANSWER:
                        raise ServiceError(f"sent more than {LARGEST_ANSWER} bytes")
        except httpx.RequestError as error:
            raise PassingError(f"cannot be asked: {type(error).__name__}: {error}") from error
        if answer.is_success:
            return bytes(received)
        said = " ".join(received[: 4 * EXCERPT].decode(errors="replace").split())[:EXCERPT]
        message = f"answered {answer.status_code} {said}".rstrip()
        if answer.status_code in PASSING:
            raise PassingError(message, _wait_s(answer))
        raise ServiceError(message)


def _authorization(key: str | None) -> dict[str, str]:
    if key is None:
        return {}
    if not (value := os.environ.get(key, "").strip()):
        raise ServiceError(f"the environment variable `{key}`, which `key` names, is not set")
    return {"Authorization": f"Bearer {value}"}


def _read(answer: bytes, read: Callable[[Any], T]) -> T:
    try:
        return read(json.loads(answer))
    except (ValueError, RecursionError) as error:
        raise PassingError(f"gave an answer that cannot be read: {error}") from error


_BACK_OFF = wait_random_exponential(multiplier=0.5, max=8.0)


def _pause(state: RetryCallState) -> float:
    """Longer each time and by chance, so that those who failed together do not come back together; or as the service says."""
    error = state.outcome.exception() if state.outcome is not None else None
    return max(_BACK_OFF(state), error.wait_s if isinstance(error, PassingError) else 0.0)


def _wait_s(answer: httpx.Response) -> float:
    """What `Retry-After` says, in seconds; 0 where it says nothing, or a date."""
    said = answer.headers.get("Retry-After", "")
    return float(said) if said.isdecimal() and len(said) < 6 else 0.0

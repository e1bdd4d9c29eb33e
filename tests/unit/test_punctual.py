"""A service that hangs is named."""

import asyncio

import pytest

from deploy.run.deadlines import Punctual

pytestmark = pytest.mark.unit


class Method:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.sent: list[tuple[object, ...]] = []

    def remote(self, *arguments: object) -> "asyncio.Future[str]":
        self.sent.append(arguments)
        return asyncio.ensure_future(asyncio.sleep(self.seconds, "answer"))


class Actor:
    def __init__(self) -> None:
        self.quick = Method(0.0)
        self.hung = Method(1000.0)


async def test_calls_are_sent_at_once_and_answered() -> None:
    actor = Actor()
    call = Punctual(actor, "the service", 1.0).quick.remote(1, "two")
    assert actor.quick.sent == [(1, "two")]
    assert await call == "answer"


async def test_a_call_that_hangs_is_named() -> None:
    with pytest.raises(TimeoutError, match=r"the service did not answer hung in 0.01 s \(stall_timeout_s\)"):
        await Punctual(Actor(), "the service", 0.01).hung.remote()

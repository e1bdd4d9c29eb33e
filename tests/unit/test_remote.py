"""A service that hangs is named."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError

from deploy.run.errors import ServiceDiedError
from deploy.run.remote import Remote

pytestmark = pytest.mark.unit


class Method:
    def __init__(self, answer: "asyncio.Future[str]") -> None:
        self.answer = answer
        self.sent: list[tuple[object, ...]] = []

    def remote(self, *arguments: object) -> "asyncio.Future[str]":
        self.sent.append(arguments)
        return self.answer


class Actor:
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.quick, self.hung, self.fails, self.dead = (Method(loop.create_future()) for _ in range(4))
        self.dead.answer.set_exception(ActorDiedError())
        self.quick.answer.set_result("answer")
        self.fails.answer.set_exception(TimeoutError("of its own"))
        for failed in (self.fails.answer, self.dead.answer):
            failed.exception()  # asyncio complains of an error that nobody took


async def test_calls_are_sent_at_once_and_answered() -> None:
    actor = Actor()
    call = Remote(actor, "the service", 1.0).quick(1, "two")
    assert actor.quick.sent == [(1, "two")]
    assert await call == "answer"


async def test_a_call_that_hangs_is_named() -> None:
    with pytest.raises(TimeoutError, match=r"the service did not answer hung in 0.01 s \(stall_timeout_s\)"):
        await Remote(Actor(), "the service", 0.01).hung()


async def test_a_deadline_of_the_actor_s_own_keeps_its_words() -> None:
    with pytest.raises(TimeoutError, match="of its own"):
        await Remote(Actor(), "the service", 1.0).fails()


async def test_the_death_of_a_service_is_one_line_that_names_it() -> None:
    actor = Actor()
    with pytest.raises(ServiceDiedError) as caught:
        await Remote(actor, "the service", 1.0).dead()
    assert str(caught.value).startswith("the service died before it answered dead: ") and "\n" not in str(caught.value)

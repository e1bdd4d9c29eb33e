"""Waiting with a deadline that is told apart from every other one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class LateError(TimeoutError):
    """A deadline of `within` passed: the message says what was waited for."""


async def within(seconds: float, waiting: Awaitable[T], late: Callable[[], str]) -> T:
    """The result of `waiting`, or whatever it raises, its own TimeoutError included.

    Raises LateError where it takes longer than `seconds`, after it was cancelled and has ended.    late: what to say then.
    """
    task = asyncio.ensure_future(waiting)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if overdue := not task.done():
            task.cancel()
            await asyncio.wait({task})
        # Asked for in any case: asyncio complains of errors that nobody took.
        error = None if task.cancelled() else task.exception()
    if overdue and (error is not None or task.cancelled()):
        raise LateError(late()) from error
    return task.result()

"""The process in which verifiers run: reads requests from a pipe, answers each attempt as soon as it is judged.

Usage: python -m actors.rewards.child PIPE_HANDLE TIMEOUT_S LIMITS_AS_JSON. Ends when its parent closes the pipe, which dying does, too.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from actors.prompts.prompt import Prompt
from actors.rewards.protocol import Attempt, FunctionVerifier, Verdict, Verifier, brief, reason, was_told_to_stop
from actors.verifiers import get_verifier

FIRST_PRIVATE = 24
"""The descriptor of the pipe is this one or one of as many behind it; a process may have at least 64."""
GRACE_S = 5.0
"""How much later than the parent's deadline the kernel ends a verifier, for when there is no parent left to do it."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the parent sends: load `verifier`, and where there is a prompt, judge these attempts with it."""

    nonce: str
    """Stands in every answer to it."""
    verifier: str
    prompt: Prompt | None = None
    attempts: tuple[Attempt, ...] = ()


class Server:
    """Consumes: requests of the pipe; those that arrive together overlap while their verifiers wait for something.
    Ends: when the pipe does."""

    def __init__(self, pipe: Connection, timeout_s: float) -> None:
        self._pipe, self._timeout_s, self._pid = pipe, timeout_s, os.getpid()
        self._verifiers: dict[str, Verifier] = {}
        self._room: dict[str, asyncio.Semaphore] = {}
        self._working = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def finished(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None and not ended.done():
                ended.set_exception(error)

        def readable() -> None:
            self._refuse_copy()
            try:
                request: Request = self._pipe.recv()
            except (EOFError, ConnectionResetError):
                if not ended.done():
                    ended.set_result(None)
                loop.remove_reader(self._pipe.fileno())
                return
            task = loop.create_task(self._answer(request))
            self._tasks.add(task)
            task.add_done_callback(finished)

        loop.add_reader(self._pipe.fileno(), readable)
        await ended

    async def _answer(self, request: Request) -> None:
        if request.prompt is None:
            self._send(request.nonce, self._load(request.verifier))
            return
        verifier, prompt, attempts = self._verifiers[request.verifier], request.prompt, request.attempts
        if not isinstance(verifier, FunctionVerifier):
            for place, verdict in enumerate(await self._judge_group(verifier, prompt, attempts)):
                self._send(request.nonce, _said(place, verdict))
        elif verifier.waits:
            await asyncio.gather(*(self._judge_in_turn(request, verifier, place) for place in range(len(attempts))))
        else:
            for place in range(len(attempts)):
                await self._judge_one(request, verifier, place)

    def _load(self, name: str) -> dict[str, Any]:
        try:
            verifier = get_verifier(name)
        except (
            BaseException
        ) as error:  # a user's module may raise anything at import, and the reason must reach the run
            return {"error": reason(error)}
        self._verifiers[name] = verifier
        concurrent = getattr(verifier, "concurrent", None)
        if concurrent is not None:
            self._room[name] = asyncio.Semaphore(concurrent)
        return {
            "error": None,
            "waits": bool(getattr(verifier, "waits", True)),
            "by_group": not isinstance(verifier, FunctionVerifier),
            "concurrent": concurrent,
        }

    async def _judge_in_turn(self, request: Request, verifier: FunctionVerifier, place: int) -> None:
        """As one of as many as the verifier judges at once. Its time begins when its turn comes."""
        async with self._room.get(request.verifier, contextlib.nullcontext()):
            await self._judge_one(request, verifier, place)

    async def _judge_one(self, request: Request, verifier: FunctionVerifier, place: int) -> None:
        assert request.prompt is not None
        self._begin()
        try:
            judging = verifier.judge_one(request.prompt, request.attempts[place])
            verdict = await asyncio.wait_for(judging, self._timeout_s) if verifier.waits else await judging
        except TimeoutError:
            verdict = Verdict(None, f"verifier timed out after {self._timeout_s:g} s", seconds=self._timeout_s)
        finally:
            self._end()
        self._send(request.nonce, _said(place, verdict))

    async def _judge_group(self, verifier: Verifier, prompt: Prompt, attempts: Sequence[Attempt]) -> Sequence[Verdict]:
        self._begin()
        try:
            verdicts = await asyncio.wait_for(verifier.judge(prompt, attempts), self._timeout_s)
            if len(verdicts) == len(attempts) and all(isinstance(verdict, Verdict) for verdict in verdicts):
                return verdicts
            error = f"verifier returned {len(verdicts)} verdicts of {len(attempts)} attempts"
        except TimeoutError:
            error = f"verifier timed out after {self._timeout_s:g} s"
        except BaseException as raised:  # an error of this group, and of nothing else; but not that it was told to stop
            if isinstance(raised, asyncio.CancelledError) and was_told_to_stop():
                raise
            error = f"verifier raised {reason(raised)}"
        finally:
            self._end()
        return [Verdict(None, error)] * len(attempts)

    def _begin(self) -> None:
        self._working += 1
        # The default action of SIGALRM ends the process even inside C code that never lets Python run.
        signal.setitimer(signal.ITIMER_REAL, self._timeout_s + GRACE_S)

    def _end(self) -> None:
        self._working -= 1
        if not self._working:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _send(self, nonce: str, answer: dict[str, Any]) -> None:
        self._refuse_copy()
        self._pipe.send_bytes(json.dumps({"request": nonce, **answer}).encode())

    def _refuse_copy(self) -> None:
        """A verifier that forks, and returns twice, is answered for once: by the process that was asked."""
        if os.getpid() != self._pid:
            os._exit(0)


def _said(place: int, verdict: Verdict) -> dict[str, Any]:
    short = {name: text and brief(str(text)) for name, text in (("error", verdict.error), ("note", verdict.note))}
    return {
        "place": place,
        "reward": None if verdict.reward is None else float(verdict.reward),
        "parts": verdict.parts and {str(name): float(part) for name, part in verdict.parts.items()},
        "seconds": float(verdict.seconds),
        **short,
    }


def main(handle: int, timeout_s: float, limits: Mapping[str, int]) -> None:
    """Serve until the pipe closes. limits: see `_limit`."""
    # Not where a loop over the first descriptors finds it, nor where a library puts its own after closing it.
    private = fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, secrets.randbelow(FIRST_PRIVATE) + FIRST_PRIVATE)
    os.close(handle)
    _limit(limits)
    # What a verifier forks has no pipe to answer by.
    os.register_at_fork(after_in_child=lambda: os.close(private))
    with Connection(private) as pipe:
        asyncio.run(Server(pipe, timeout_s).serve())


def _limit(limits: Mapping[str, int]) -> None:
    """limits: by the kernel's name; what is lower already stays."""
    for name, most in limits.items():
        kind: int = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    # Under its own name and not as `__main__`: what the parent sends is an instance of this module's classes.
    from actors.rewards.child import main as serve

    serve(int(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3]))

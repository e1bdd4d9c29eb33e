"""The parent's end of one verifier process: asks, checks every answer, and kills what does not answer in time.

The child is a plain subprocess and not multiprocessing's: that one would import the parent's main module again, which
in a Ray worker is Ray's own worker script. Between the two stands `actors.rewards.supervisor`, which ends as the child ended, and
before that kills all that was started below it.
"""

import asyncio
import contextlib
import functools
import json
import math
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

from actors.config import VerifierLimits
from actors.import_path import module_command, module_environment
from actors.prompts.prompt import Prompt
from actors.rewards import supervisor
from actors.rewards.child import GRACE_S, Request
from actors.rewards.protocol import MAX_NAME, MAX_PARTS, MAX_REASON, Attempt, Verdict, brief
from actors.rewards.stderr import StderrTail

MAX_ANSWER = 2**16
"""Bytes that one answer may have."""


class ProcessDiedError(RuntimeError):
    """The process ended before it answered; the message says how."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A verifier that was imported. waits: others can be judged beside it.    by_group: it judges whole groups.

    concurrent: attempts that it judges at once; more would wait within their deadlines. None for any number.
    """

    waits: bool
    by_group: bool
    concurrent: int | None = None


_Answer = dict[str, Any] | ProcessDiedError


class VerifierProcess:
    """One process and the pipe to it, within the event loop that made it.

    Consumes: `load` and `judge`, any number at once. Waits for: the next answer to each, with a deadline. Ends: by `kill`,
    by a deadline, or by itself; all that waits is then told how.
    """

    def __init__(self, timeout_s: float, start_timeout_s: float, limits: VerifierLimits | None = None) -> None:
        self.loaded: dict[str, Loaded] = {}
        self._timeout_s, self._start_timeout_s = timeout_s, start_timeout_s
        # By the nonce of each request: who was not asked has no answer to give.
        self._answers: dict[str, asyncio.Queue[_Answer]] = {}
        self._received = bytearray()
        self._sending = asyncio.Lock()
        self._ending: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._socket, far_end = socket.socketpair()
        self._socket.setblocking(False)
        self._stderr = StderrTail()
        limits = limits or VerifierLimits()
        self._too_much = ""  # memory, as the supervisor says it
        self._memory_gib, told = limits.memory_gib, json.dumps(_kernel_limits(limits))
        with far_end, os.fdopen(self._stderr.far_end, "wb") as stderr:
            handle = far_end.fileno()
            self._process = subprocess.Popen(
                _supervised(
                    pid_namespace_allowed(),
                    handle,
                    int((limits.memory_gib or 0.0) * 2**30),
                    module_command("actors.rewards.child", str(handle), str(timeout_s), told),
                ),
                pass_fds=(handle,),
                # The supervisor ends all when this is closed, which the end of this process does, too.
                stdin=subprocess.PIPE,
                # The supervisor's. What verifiers print is hostile text, and goes nowhere; errors travel through the pipe.
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=module_environment(),
                # What this process's group gets from a terminal is not for them.
                start_new_session=True,
            )
        asyncio.get_running_loop().add_reader(self._socket, self._readable)

    @property
    def alive(self) -> bool:
        """Whether it can be asked. Looks at the pipe where nothing is asked now, and all that can come is its end."""
        if self._ending is None and not self._answers:
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                if not self._socket.recv(1, socket.MSG_PEEK):
                    self._end(None)
        return self._ending is None

    async def load(self, verifier: str) -> str | None:
        """Import a verifier, once. Returns why it cannot be, or None. Raises ProcessDiedError."""
        if verifier in self.loaded:
            return None
        with self._request() as (nonce, answers):
            await self._send(Request(nonce, verifier))
            answer = await self._next(answers, self._start_timeout_s)
        error = answer.get("error", "it said nothing of how it was loaded")
        if error is None:
            self._stderr.forget()
            concurrent = answer.get("concurrent")
            self.loaded[verifier] = Loaded(
                bool(answer.get("waits")),
                bool(answer.get("by_group")),
                concurrent if type(concurrent) is int else None,
            )
        return None if error is None else brief(str(error)) + self._stderr.said()

    async def judge(self, prompt: Prompt, attempts: Sequence[Attempt]) -> tuple[dict[int, Verdict], str | None]:
        """Verdicts by place, and how the process died before it gave the rest; None where none is missing.

        The prompt's verifier must be loaded.
        """
        # A verifier that waits keeps its own deadlines; the process is killed where it fails to.
        waits = self.loaded[prompt.verifier].waits
        deadline_s = self._timeout_s + (GRACE_S if waits else 0.0)
        verdicts: dict[int, Verdict] = {}
        if not self._answers:
            self._stderr.forget()
        with self._request() as (nonce, answers):
            try:
                await self._send(Request(nonce, prompt.verifier, prompt, tuple(attempts)))
                while len(verdicts) < len(attempts):
                    answer = await self._next(answers, deadline_s, self._timeout_s)
                    place: int = answer.get("place", -1)
                    due = range(len(attempts)) if waits else (len(verdicts),)
                    if place in verdicts or place not in due:
                        forged = f"answered for attempt {place!r}, which nobody asked about"
                        await self.kill(forged)
                        raise ProcessDiedError(forged)
                    verdicts[place] = answer["verdict"]
            except ProcessDiedError as death:
                return verdicts, str(death)
        return verdicts, None

    async def kill(self, why: str = "was ended") -> None:
        """End the process and everything that it started; returns when it is gone. why: what those that wait are told."""
        self._end(why)
        assert self._ending is not None
        await asyncio.shield(self._ending)

    @contextlib.contextmanager
    def _request(self) -> Iterator[tuple[str, "asyncio.Queue[_Answer]"]]:
        nonce, answers = secrets.token_hex(16), asyncio.Queue[_Answer]()
        self._answers[nonce] = answers
        try:
            yield nonce, answers
        finally:
            del self._answers[nonce]

    async def _send(self, request: Request) -> None:
        message = bytes(ForkingPickler.dumps(request))
        message = len(message).to_bytes(4, "big") + message
        async with self._sending:
            if self._ended.done() or not (message := self._left_to_send(message)):
                return
            sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(self._socket, message))
            # Nothing else wakes who sends to a process that is killed.
            await asyncio.wait(
                {sending, self._ended}, timeout=self._start_timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not sending.done():
                sending.cancel()
                self._end(f"did not take its request in {self._start_timeout_s:g} s")
            elif sending.exception() is not None:
                self._end(None)

    def _left_to_send(self, message: bytes) -> bytes:
        """What the pipe does not take at once; it takes nearly every request whole."""
        try:
            return message[self._socket.send(message) :]
        except BlockingIOError:
            return message
        except OSError:
            self._end(None)
            return b""

    async def _next(
        self, answers: "asyncio.Queue[_Answer]", deadline_s: float, said_s: float | None = None
    ) -> dict[str, Any]:
        try:
            answer = await asyncio.wait_for(answers.get(), deadline_s)
        except TimeoutError:
            self._end(f"timed out after {said_s or deadline_s:g} s")
            answer = await answers.get()
        if isinstance(answer, ProcessDiedError):
            raise answer
        return answer

    def _readable(self) -> None:
        try:
            data = self._socket.recv(2**16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(None)
        self._received += data
        while self._ending is None and len(self._received) >= 4:
            size = int.from_bytes(self._received[:4], "big")
            if size > MAX_ANSWER:
                self._end(f"sent an answer of {size} bytes")
                return
            if len(self._received) < 4 + size:
                return
            message = bytes(self._received[4 : 4 + size])
            del self._received[: 4 + size]
            try:
                self._deliver(json.loads(message))
            except (ValueError, TypeError, KeyError) as error:
                self._end(f"sent an answer that cannot be: {error}"[:MAX_REASON])

    def _deliver(self, answer: dict[str, Any]) -> None:
        """JSON and not pickle, and every field looked at: nothing that ran beside hostile text gets to build objects here."""
        if "place" in answer:
            if type(answer["place"]) is not int:
                raise TypeError(f"{answer['place']!r} is no place")
            answer["verdict"] = self._explained(_checked(answer))
        if (waiting := self._answers.get(answer["request"])) is None:
            # Whoever asks stays until all is answered, so nobody of ours says this.
            self._end("answered what nobody asked")
            return
        waiting.put_nowait(answer)

    def _explained(self, verdict: Verdict) -> Verdict:
        """With what was written to stderr meanwhile, where there is an error and nobody else who could have written it."""
        if verdict.error is not None and len(self._answers) == 1:
            verdict = replace(verdict, error=verdict.error + self._stderr.said())
            self._stderr.forget()
        return verdict

    def _end(self, why: str | None) -> None:
        if self._ending is None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._ended.set_result(None)
            self._ending = asyncio.create_task(self._reap(why), name="end-of-verifier-process")

    async def _reap(self, why: str | None) -> None:
        ended_by_itself = await asyncio.to_thread(self._kill, 0.0 if why else GRACE_S)
        self._socket.close()
        code = self._process.returncode
        if self._too_much:
            why = f"{self._too_much}, more than rewards.limits.memory_gib = {self._memory_gib:g}, and was killed"
        if why is None and not ended_by_itself:
            why = f"closed the pipe to its parent, did not end in {GRACE_S:g} s, and was killed"
        own = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended its process with exit code {code}"
        death = brief(why or own) + self._stderr.said()
        self._stderr.close()
        for answers in self._answers.values():
            answers.put_nowait(ProcessDiedError(death))

    def _kill(self, grace_s: float) -> bool:
        """End everything; returns whether the verifier had ended by itself within `grace_s`, which the exit code then is of."""
        assert self._process.stdin is not None and self._process.stdout is not None
        handle = os.pidfd_open(self._process.pid)
        try:
            ended = bool(select.select([handle], [], [], grace_s)[0])
            self._process.stdin.close()
            # Only a supervisor that somebody has stopped takes longer.
            if not select.select([handle], [], [], GRACE_S)[0]:
                self._process.kill()
        finally:
            os.close(handle)
        self._process.wait()
        with self._process.stdout as supervisor_said:
            self._too_much = supervisor_said.read().decode()
        return ended


@functools.cache
def pid_namespace_allowed() -> bool:
    """Whether verifiers of this process can have a pid namespace of their own. Tried once, in 50 ms."""
    tried = subprocess.run(_supervised(True, -1, 0, []), stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return tried.returncode == 0


def _supervised(namespace: bool, handle: int, memory: int, command: Sequence[str]) -> list[str]:
    # Isolated and without site-packages: it needs nothing of them, and starts in a fraction of the time.
    return [sys.executable, "-I", "-S", supervisor.__file__, *map(str, (int(namespace), handle, memory)), *command]


def _kernel_limits(limits: VerifierLimits) -> dict[str, int]:
    wanted = {
        "RLIMIT_AS": limits.memory_gib and int(limits.memory_gib * 2**30),
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_FSIZE": int(limits.file_gib * 2**30),
        "RLIMIT_NPROC": limits.processes,
        "RLIMIT_CORE": 0,  # a segfault is an error of a completion, and no file of all its memory
    }
    return {name: int(most) for name, most in wanted.items() if most is not None}


def _checked(answer: dict[str, Any]) -> Verdict:
    """The verdict of an answer. Raises ValueError, TypeError or KeyError for one that no verifier of ours gives."""
    reward, error, parts, note = answer["reward"], answer["error"], answer["parts"], answer["note"]
    for text in (error, note):
        if text is not None and not (isinstance(text, str) and len(text) <= 2 * MAX_REASON):
            raise TypeError(f"{str(text)[:40]!r} is no short text")
    numbers = [answer["seconds"], *(() if reward is None else (reward,))]
    if parts is not None:
        if len(parts) > MAX_PARTS or not all(len(name) <= MAX_NAME for name in parts):
            raise ValueError("its parts are too many, or their names too long")
        numbers += parts.values()
    if not all(type(number) in (int, float) for number in numbers):
        raise TypeError(f"{numbers} are not all numbers")
    if not 0 <= answer["seconds"] < math.inf:
        raise ValueError(f"it took {answer['seconds']} s")
    named = None if parts is None else {name: float(part) for name, part in parts.items()}
    error, note = (text and brief(text) for text in (error, note))
    return Verdict(None if reward is None else float(reward), error, named, float(answer["seconds"]), note)

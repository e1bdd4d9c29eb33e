"""Scoring: runs verifiers in a child process that can be killed, so that an error is never a reward.

The child is a plain subprocess and not multiprocessing's: that one would import the parent's main module again, which
in a Ray worker is Ray's own worker script.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import Pipe
from typing import Any

from actors.prompts.feed import Prompt


@dataclass(frozen=True, slots=True)
class Score:
    """What a verifier said about one completion: a finite reward, or why there is none."""

    reward: float | None
    error: str | None
    parts: dict[str, float] | None = None
    """What the reward is the sum of, where the verifier says."""
    seconds: float = field(default=0.0, compare=False)
    """How long the verifier worked on it; waiting for other groups does not count."""


class ScorerClosedError(RuntimeError):
    """The scorer was closed, or never started."""


class _ChildDiedError(RuntimeError):
    """The child ended before it answered; the message says how."""


class Scorer:
    """Scores groups one after the other in one child process.

    Consumes: requests of `score`, queued in order of arrival without bound (the slot budget bounds what is in flight).
    Waits for: the child's next answer, at most `timeout_s` a completion. A child that misses it is killed with everything it
    started, the completion becomes an error, and a new child goes on with the rest.
    Ends: `close` kills the child; requests still queued then raise `ScorerClosedError`.
    """

    def __init__(self, timeout_s: float, start_timeout_s: float = 120.0) -> None:
        """timeout_s: for one completion.    start_timeout_s: for a child to start, and to import a verifier."""
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._child: _Child | None = None
        # One thread: it is the queue, and a cancelled caller cannot let a second request into the same pipe.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._closed = False

    async def start(self, verifiers: Iterable[str] = ()) -> None:
        """Start the child and import these verifiers. Raises if one cannot be loaded."""
        await self._run(self._warm_up, tuple(verifiers))

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[Score]:
        """One score per completion, in order. Never raises for what a verifier or a completion does."""
        return await self._run(self._score, prompt, tuple(completions))

    async def close(self) -> None:
        """End the child. May be called twice."""
        self._closed = True
        if self._child is not None:
            self._child.kill()
        await asyncio.to_thread(self._thread.shutdown)
        if self._child is not None:
            self._child.kill()
            self._child = None

    async def _run(self, function: Any, *arguments: Any) -> Any:
        if self._closed:
            raise ScorerClosedError("the scorer is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _warm_up(self, verifiers: tuple[str, ...]) -> None:
        for verifier in verifiers:
            error = self._ready_child().load(verifier)
            if error is not None:
                raise RuntimeError(f"verifier `{verifier}` does not start: {error}")

    def _score(self, prompt: Prompt, completions: tuple[str, ...]) -> list[Score]:
        scores: list[Score] = []
        while len(scores) < len(completions):
            scores += self._attempt(prompt, completions[len(scores) :])
        return scores

    def _attempt(self, prompt: Prompt, completions: tuple[str, ...]) -> list[Score]:
        """Scores up to and including the first completion that costs a child its life."""
        scores: list[Score] = []
        child = self._ready_child()
        try:
            error = child.load(prompt.verifier)
            if error is not None:
                return [Score(None, error)] * len(completions)
        except _ChildDiedError as death:
            # Loading does not depend on the completion, so trying again for each would only repeat it.
            self._refuse_if_closed()
            return [Score(None, f"verifier `{prompt.verifier}` cannot be loaded: {death}")] * len(completions)
        started = time.perf_counter()
        try:
            child.send((prompt, completions))
            for _ in completions:
                answer = child.receive(self._timeout_s)
                now = time.perf_counter()
                scores.append(Score(answer["reward"], answer["error"], answer.get("parts"), now - started))
                started = now
        except _ChildDiedError as death:
            self._refuse_if_closed()
            scores.append(Score(None, f"verifier {death}", seconds=time.perf_counter() - started))
        return scores

    def _ready_child(self) -> "_Child":
        self._refuse_if_closed()
        if self._child is None or not self._child.alive:
            if self._child is not None:
                self._child.kill()
            self._child = _Child(self._timeout_s, self._start_timeout_s)
            self._refuse_if_closed()
        return self._child

    def _refuse_if_closed(self) -> None:
        if self._closed:
            if self._child is not None:
                self._child.kill()
            raise ScorerClosedError("the scorer was closed while a group was being scored")


class _Child:
    """One verifier process and the pipe to it. Used by one thread; only `kill` may be called from another."""

    def __init__(self, timeout_s: float, start_timeout_s: float) -> None:
        self._start_timeout_s = start_timeout_s
        self._loaded: set[str] = set()
        self._kill_lock = threading.Lock()
        self._pipe, far_end = Pipe()
        with far_end:
            handle = far_end.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "actors.rewards.child", str(handle), str(timeout_s)],
                pass_fds=(handle,),
                stdin=subprocess.DEVNULL,
                # What verifiers print is hostile text, too; errors travel through the pipe.
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                # A group of its own, so that whatever a verifier starts is killed with it.
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Asked between requests, when all that can arrive is the end of the pipe."""
        return self._process.returncode is None and not self._pipe.poll(0)

    def load(self, verifier: str) -> str | None:
        """Import a verifier, once. Returns why it cannot be, or None."""
        if verifier in self._loaded:
            return None
        self.send(verifier)
        answer = self.receive(self._start_timeout_s)
        if answer["error"] is None:
            self._loaded.add(verifier)
        error: str | None = answer["error"]
        return error

    def send(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError as error:
            raise self._died() from error

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next answer. JSON and not pickle: nothing that ran beside hostile text gets to build objects here."""
        try:
            if self._pipe.poll(timeout_s):
                answer: dict[str, Any] = json.loads(self._pipe.recv_bytes())
                return answer
        except (EOFError, OSError) as error:
            raise self._died() from error
        self.kill()
        raise _ChildDiedError(f"timed out after {timeout_s:g} s")

    def kill(self) -> None:
        """End the process, and return when it is gone; what it started is killed at the same moment."""
        with self._kill_lock:
            # Only before the process is reaped is its id still its own.
            if self._process.returncode is None:
                # The group is gone already where the process died before it could make one.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def _died(self) -> _ChildDiedError:
        self.kill()
        code = self._process.returncode
        return _ChildDiedError(
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended its process with exit code {code}"
        )

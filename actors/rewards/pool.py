"""The reward pool: verifiers in processes that can be killed, so that an error is never a reward and a slow one holds up nobody."""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from actors.config import RewardsConfig
from actors.prompts.prompt import Prompt
from actors.rewards.process import Loaded, ProcessDiedError, VerifierProcess
from actors.rewards.protocol import Attempt, Verdict

GROW_AFTER_S = 1.0
"""How long a group waits for a process before another one is started."""
MAX_TOGETHER = 32
"""Groups that one process judges at once while their verifiers wait for something."""
START_TIMEOUT_S = 120.0
"""For a process to start, and to import a verifier."""


class RewardPoolClosedError(RuntimeError):
    """The pool was closed, or is being closed."""


class UnloadableVerifierError(RuntimeError):
    """A verifier cannot be imported; the message says why."""


@dataclass(slots=True)
class _Waiting:
    verifier: str
    attempts: int
    alone: bool
    given: "asyncio.Future[VerifierProcess]"


@dataclass(slots=True, eq=False)
class _Busy:
    """What a process is working on."""

    process: VerifierProcess
    groups: list[tuple[str, int]] = field(default_factory=list)
    """The verifier and the number of attempts of each."""
    together: bool = False
    """Whether others may join."""

    @property
    def verifiers(self) -> list[str]:
        return [verifier for verifier, _ in self.groups]

    def has_room(self, verifier: str, attempts: int) -> bool:
        """Whether a group may join others whose verifiers wait for something, and begin at once with all of its attempts."""
        if verifier not in self.process.loaded or not 0 < len(self.groups) < MAX_TOGETHER:
            return False
        most = self.process.loaded[verifier].concurrent
        return most is None or attempts + sum(count for name, count in self.groups if name == verifier) <= most


class RewardPool:
    """Judges groups in up to `rewards.processes` child processes.

    Consumes: groups of `judge`, in order of arrival and without bound (the slot budget bounds what is in flight). A group
    has a process for itself while its verifier works, or shares one with others whose verifiers are async. One
    verifier never holds all processes where there are others. Waits for: the next verdict, at most `timeout_s`. A
    process that misses it is killed with everything it started; the attempt becomes an error, and another process goes
    on with the rest. A caller that is cancelled leaves its group to be judged for nobody.
    Ends: `close` kills the processes; groups still here then raise RewardPoolClosedError.
    """

    def __init__(self, config: RewardsConfig) -> None:
        self._config = config
        self._processes: list[_Busy] = []
        self._wanted = 1  # one more whenever a group waited for long
        self._waiting: deque[_Waiting] = deque()
        self._kinds: dict[str, Loaded] = {}
        self._names: set[str] = set()
        self._judging: set[asyncio.Task[list[Verdict]]] = set()
        self._closed = False

    async def start(self, verifiers: Iterable[str] = ()) -> None:
        """Start a process and import these verifiers. Raises UnloadableVerifierError if one cannot be."""
        self._names |= set(verifiers)
        for verifier in verifiers:
            process = await self._process(verifier, 0, alone=True)
            try:
                await self._load(process, verifier)
            except UnloadableVerifierError as error:
                raise UnloadableVerifierError(f"verifier `{verifier}` does not start: {error}") from error
            finally:
                self._leave(process, verifier, 0)

    async def judge(self, prompt: Prompt, attempts: Sequence[Attempt]) -> list[Verdict]:
        """One verdict for each attempt, in order. Never raises for what a verifier or a completion does."""
        self._refuse_if_closed()
        if not attempts:
            return []
        self._names.add(prompt.verifier)
        task = asyncio.create_task(self._judge(prompt, attempts), name="judge")
        self._judging.add(task)
        task.add_done_callback(self._judged)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """End the processes. May be called twice."""
        self._closed = True
        while self._waiting:
            self._waiting.popleft().given.set_exception(RewardPoolClosedError("the reward pool was closed"))
        await asyncio.gather(*(busy.process.kill() for busy in self._processes))
        await asyncio.gather(*self._judging, return_exceptions=True)
        self._processes.clear()

    async def _judge(self, prompt: Prompt, attempts: Sequence[Attempt]) -> list[Verdict]:
        name = prompt.verifier
        verdicts: dict[int, Verdict] = {}
        # After a process died under what was judged together, each has one for itself, to find whose fault it was.
        alone = False
        while left := [place for place in range(len(attempts)) if place not in verdicts]:
            asked = left[:1] if alone and not self._kinds[name].by_group else left
            process = await self._process(name, len(asked), alone)
            started = time.perf_counter()
            try:
                await self._load(process, name)
                if not alone:
                    self._share(process, name)
                found, death = await process.judge(prompt, [attempts[place] for place in asked])
            except UnloadableVerifierError as error:
                # Loading does not depend on the attempt, so trying again for each would only repeat it.
                return [Verdict(None, str(error))] * len(attempts)
            finally:
                self._leave(process, name, len(asked))
            verdicts |= {asked[place]: verdict for place, verdict in found.items()}
            if death is None:
                continue
            self._refuse_if_closed()
            guilty = [place for place in asked if place not in verdicts]
            kind = self._kinds[name]
            if kind.waits and not alone:
                alone = True
                continue
            # Functions are called in order, so the first one without an answer it was; a group's verifier answers for all.
            for place in guilty if kind.by_group else guilty[:1]:
                verdicts[place] = Verdict(None, f"verifier {death}", seconds=time.perf_counter() - started)
        return [verdicts[place] for place in range(len(attempts))]

    async def _load(self, process: VerifierProcess, verifier: str) -> None:
        try:
            error = await process.load(verifier)
        except ProcessDiedError as death:
            self._refuse_if_closed()
            error = f"verifier `{verifier}` cannot be loaded: {death}"
        if error is not None:
            raise UnloadableVerifierError(error)
        self._kinds[verifier] = process.loaded[verifier]

    async def _process(self, verifier: str, attempts: int, alone: bool) -> VerifierProcess:
        """A process that may be asked for this verifier now; `_leave` gives it back."""
        self._refuse_if_closed()
        waiting = _Waiting(verifier, attempts, alone, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._assign()
        if not waiting.given.done() and self._wanted < self._config.processes:
            asyncio.get_running_loop().call_later(GROW_AFTER_S, self._grow, waiting)
        return await waiting.given

    def _leave(self, process: VerifierProcess, verifier: str, attempts: int) -> None:
        for busy in [busy for busy in self._processes if busy.process is process]:
            busy.groups.remove((verifier, attempts))
            if not busy.groups and not process.alive:
                self._processes.remove(busy)
        self._assign()

    def _share(self, process: VerifierProcess, verifier: str) -> None:
        """Let others into a process whose verifier leaves them room."""
        for busy in self._processes:
            if busy.process is process and self._kinds[verifier].waits and not busy.together:
                busy.together = True
                self._assign()

    def _grow(self, waiting: _Waiting) -> None:
        if not waiting.given.done() and self._wanted < self._config.processes:
            self._wanted += 1
            self._assign()

    def _assign(self) -> None:
        if self._closed:
            return
        for waiting in list(self._waiting):
            if (busy := self._free(waiting)) is not None:
                self._waiting.remove(waiting)
                busy.groups.append((waiting.verifier, waiting.attempts))
                waiting.given.set_result(busy.process)

    def _free(self, waiting: _Waiting) -> _Busy | None:
        """The process that this one gets now, if any; a new one where there are not yet as many as are wanted."""
        name = waiting.verifier
        kind = self._kinds.get(name)
        together = kind is not None and kind.waits and not waiting.alone
        alive = [busy for busy in self._processes if busy.process.alive]
        if together:
            for busy in alive:
                if busy.together and busy.has_room(name, waiting.attempts):
                    return busy
        holding = sum(name in busy.verifiers for busy in alive)
        if len(self._names) > 1 and self._config.processes > 1 and holding >= self._config.processes - 1:
            return None
        idle = [busy for busy in self._processes if not busy.groups]
        for dead in [busy for busy in idle if not busy.process.alive]:
            self._processes.remove(dead)
            idle.remove(dead)
        found = next((busy for busy in idle if name in busy.process.loaded), idle[0] if idle else None)
        if found is None and len(self._processes) < self._wanted:
            found = _Busy(VerifierProcess(self._config.timeout_s, START_TIMEOUT_S, self._config.limits))
            self._processes.append(found)
        if found is not None:
            found.together = False  # until its verifier is loaded, which nothing can overlap with
        return found

    def _judged(self, task: "asyncio.Task[list[Verdict]]") -> None:
        self._judging.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, for when whoever asked was cancelled

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RewardPoolClosedError("the reward pool was closed while a group was being judged")

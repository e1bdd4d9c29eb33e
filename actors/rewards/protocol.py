"""What is judged, what is said of it, and what a verifier is."""

import asyncio
import inspect
import math
import numbers
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from actors.prompts.prompt import Prompt
from actors.redaction import redacted

MAX_REASON = 200
MAX_READ = 4096
"""Characters of a text that are looked at for secrets before it is cut to MAX_REASON."""
MAX_PARTS = 16
MAX_NAME = 40
NOT_A_NUMBER = "not a number"
"""What stands in the error of a verifier that returned another kind of thing."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One sample as a verifier sees it, beside its prompt."""

    text: str
    """What the policy said last: where there is one turn, its completion."""
    index: int = 0
    """Its place in the group."""
    tokens: int = 0
    """How many tokens the policy sampled, over all turns."""
    truncated: bool = False
    """Whether a length limit ended it."""
    turns: tuple[str, ...] = ()
    """What the policy said, turn by turn."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A finite reward, or why there is none: never both, never neither."""

    reward: float | None
    error: str | None = None
    parts: dict[str, float] | None = None
    """What the reward is the sum of, or what stands beside it, where the verifier says."""
    seconds: float = field(default=0.0, compare=False)
    """How long the verifier worked on it; waiting for other groups does not count."""
    note: str | None = None
    """What the verifier has to say about it, for people."""

    def __post_init__(self) -> None:
        if (self.reward is None) == (self.error is None):
            raise ValueError(f"a verdict has a reward or an error, and not both: {self.reward}, {self.error}")
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError(f"reward {self.reward} is not finite")


class Verifier(Protocol):
    """Judges groups. A completion is hostile input: it must not reach `eval`, a shell or a path."""

    async def judge(self, prompt: Prompt, attempts: Sequence[Attempt]) -> Sequence[Verdict]:
        """One verdict for each attempt, in order."""
        ...


WHOLE = "reward"
"""The part that, where it is there, is the reward itself; the others then stand beside it."""
Value = float | Mapping[str, float] | Verdict
"""What a function says of a completion: its reward (or True or False), or the named parts of it, whose sum it is, or whose part `reward`; or
all of it, as a verdict."""


class Unscored(Exception):  # noqa: N818 (what a verifier says of a completion, and no failure of its own)
    """Raised by a verifier that cannot judge a completion, with why: the completion has no reward."""


VerifierFunction = Callable[[Prompt, str], Value | Awaitable[Value]]
"""A verifier as a plain function, sync or async, of one completion. Anything but finite numbers, and any exception, is an
error and no reward."""


GROUP = "attempts"
"""A function whose argument is called so judges whole groups: it is given all of a group's attempts, and returns a value for each."""


class FunctionVerifier:
    """A function as a verifier."""

    concurrent: int | None = None
    """How many completions an async one judges at once in each process; None for any number."""

    def __init__(self, function: VerifierFunction, concurrent: int | None = None) -> None:
        self._function, self.concurrent = function, concurrent
        self.waits = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
        """Whether it is async, so that others can be judged while it waits."""

    async def judge(self, prompt: Prompt, attempts: Sequence[Attempt]) -> list[Verdict]:
        return [await self.judge_one(prompt, attempt) for attempt in attempts]

    async def judge_one(self, prompt: Prompt, attempt: Attempt) -> Verdict:
        """Whatever the function raises or returns is told of in the verdict."""
        started = time.perf_counter()
        try:
            value = self._function(prompt, attempt.text)
            if inspect.isawaitable(value):
                value = await value
        except BaseException as error:
            return _raised(error, started)
        return _said(value, started)


class GroupFunctionVerifier:
    """A function of a prompt and all attempts of its group, sync or async, as a verifier. Returns a value for each attempt, in order."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.waits = inspect.iscoroutinefunction(function)

    async def judge(self, prompt: Prompt, attempts: Sequence[Attempt]) -> list[Verdict]:
        started = time.perf_counter()
        try:
            values = self._function(prompt, attempts)
            if inspect.isawaitable(values):
                values = await values
            values = list(values)
        except BaseException as error:
            return [_raised(error, started)] * len(attempts)
        if len(values) != len(attempts):
            return [Verdict(None, f"verifier returned {len(values)} values for {len(attempts)} attempts")] * len(
                attempts
            )
        return [_said(value, started) for value in values]


def _raised(error: BaseException, started: float) -> Verdict:
    """Whatever a verifier raises is an error of what it was asked about, and of nothing else; but not that it was told to stop."""
    if isinstance(error, asyncio.CancelledError) and was_told_to_stop():
        raise error
    if isinstance(error, Unscored):
        return Verdict(None, brief(f"unscored: {error}"), seconds=time.perf_counter() - started)
    return Verdict(None, f"verifier raised {reason(error)}", seconds=time.perf_counter() - started)


def _said(value: Any, started: float) -> Verdict:
    """What a function returned of a completion, as a verdict."""
    if isinstance(value, Verdict):
        return replace(value, seconds=time.perf_counter() - started)
    try:
        parts = _parts(value) if isinstance(value, Mapping) else None
        whole = value if parts is None else parts.pop(WHOLE) if WHOLE in parts else math.fsum(parts.values())
        if not isinstance(whole, numbers.Real):
            return Verdict(None, f"verifier returned {type(whole).__name__}, {NOT_A_NUMBER}")
        reward = float(whole)
    except Exception as error:  # what is called a number may do anything when it is asked for one
        return Verdict(None, f"verifier raised {reason(error)}")
    if not math.isfinite(reward):
        return Verdict(None, f"verifier returned {reward}")
    return Verdict(reward, parts=parts or None, seconds=time.perf_counter() - started)


def was_told_to_stop() -> bool:
    """Whether somebody cancelled the task that runs now; otherwise what runs in it has raised CancelledError by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def as_verifier(found: Any) -> Verifier:
    """An object with `judge`, a class of such, or a function, as a verifier. Raises TypeError for anything else."""
    if inspect.isclass(found) and hasattr(found, "judge"):
        found = found()
    if hasattr(found, "judge"):
        verifier: Verifier = found
        return verifier
    if not callable(found):
        raise TypeError(f"a {type(found).__name__}, not a callable")
    if GROUP in _refuse_other_arguments(found):
        return GroupFunctionVerifier(found)
    return FunctionVerifier(found)


def _refuse_other_arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a verifier's arguments. Raises TypeError for one that cannot be called as they are."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # one in C that does not tell
        return ()
    try:
        signature.bind(None, "")
    except TypeError as error:
        raise TypeError(f"called as (prompt, completion), and takes {signature}: {error}") from None
    return tuple(signature.parameters)


def reason(error: BaseException) -> str:
    """An exception in one short text."""
    return brief(f"{type(error).__name__}: {error}")


def brief(text: str) -> str:
    """A text of a verifier as a run may keep it: short, and without secrets, which are looked for before it is cut."""
    return redacted(text[:MAX_READ])[:MAX_REASON]


def _parts(value: Mapping[Any, Any]) -> dict[str, float]:
    if not 1 <= len(value) <= MAX_PARTS:
        raise ValueError(f"a reward of {len(value)} parts; there may be 1 to {MAX_PARTS}")
    for name, part in value.items():
        if not isinstance(name, str) or len(name) > MAX_NAME or not isinstance(part, numbers.Real):
            raise ValueError(
                f"{name!r}: {part!r} is no part of a reward; a name of up to {MAX_NAME} characters and a number is"
            )
    return {name: float(part) for name, part in value.items()}

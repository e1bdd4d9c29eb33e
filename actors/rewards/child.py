"""The child process of `actors.rewards.pool`: reads requests from a pipe, answers each completion as soon as it is scored.

Usage: python -m actors.rewards.child PIPE_HANDLE TIMEOUT_S. Ends when its parent closes the pipe, which dying does, too.
"""

import json
import math
import numbers
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from actors.prompts.feed import Prompt
from actors.verifiers import Verifier, get_verifier

GRACE_S = 5.0
"""How much later than the parent's deadline the kernel ends a verifier, for when there is no parent left to do it."""
MAX_REASON = 200
MAX_PARTS = 16
MAX_NAME = 40


def main(handle: int, timeout_s: float) -> None:
    """Serve until the pipe closes. A str asks for a verifier to be imported, a (prompt, completions) for its scores."""
    verifiers: dict[str, Verifier] = {}
    os.set_inheritable(handle, False)
    with Connection(handle) as pipe:
        while True:
            try:
                message: str | tuple[Prompt, tuple[str, ...]] = pipe.recv()
            except (EOFError, ConnectionResetError):
                return
            if isinstance(message, str):
                _answer(pipe, load(message, verifiers))
                continue
            prompt, completions = message
            for completion in completions:
                # The default action of SIGALRM ends the process even inside C code that never lets Python run.
                signal.setitimer(signal.ITIMER_REAL, timeout_s + GRACE_S)
                answer = judge(verifiers[prompt.verifier], prompt, completion)
                signal.setitimer(signal.ITIMER_REAL, 0)
                _answer(pipe, answer)


def load(name: str, verifiers: dict[str, Verifier]) -> dict[str, Any]:
    """Import a verifier into `verifiers`."""
    try:
        verifiers[name] = get_verifier(name)
    except (
        Exception,
        SystemExit,
    ) as error:  # a user's module may raise anything at import, and the reason must reach the run
        return {"reward": None, "error": _reason(error)}
    return {"reward": None, "error": None}


def judge(verifier: Verifier, prompt: Prompt, completion: str) -> dict[str, Any]:
    """The reward, or the reason why there is none: never both, never neither."""
    try:
        value = verifier(prompt, completion)
        parts = _parts(value) if isinstance(value, Mapping) else None
        whole = math.fsum(parts.values()) if parts is not None else value
        if not isinstance(whole, numbers.Real):
            return {"reward": None, "error": f"verifier returned {type(whole).__name__}, not a number"}
        reward = float(whole)
    except (
        Exception,
        SystemExit,
    ) as error:  # whatever a verifier raises is an error of this completion, and of nothing else
        return {"reward": None, "error": f"verifier raised {_reason(error)}"}
    if not math.isfinite(reward):
        return {"reward": None, "error": f"verifier returned {reward}"}
    return {"reward": reward, "error": None, "parts": parts}


def _parts(value: Mapping[Any, Any]) -> dict[str, float]:
    if not 1 <= len(value) <= MAX_PARTS:
        raise ValueError(f"a reward of {len(value)} parts; there may be 1 to {MAX_PARTS}")
    for name, part in value.items():
        if not isinstance(name, str) or len(name) > MAX_NAME or not isinstance(part, numbers.Real):
            raise ValueError(
                f"{name!r}: {part!r} is no part of a reward; a name of up to {MAX_NAME} characters and a number is"
            )
    return {name: float(part) for name, part in value.items()}


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_REASON]


def _answer(pipe: Connection, answer: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(answer).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))

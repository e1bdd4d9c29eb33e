"""Verifiers that misbehave in every way a completion can ask for. The completion says what happens."""

import asyncio
import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.prompts.prompt import Prompt
from actors.rewards.protocol import Attempt, Verdict


def obey(prompt: Prompt, completion: str) -> Any:
    """Does what the completion says; a number is returned as the reward."""
    action, _, argument = completion.partition(" ")
    match action:
        case "raise":
            raise RuntimeError(argument)
        case "return":
            return {"nan": float("nan"), "inf": float("inf"), "text": "1.0", "none": None, "true": True}[argument]
        case "parts":
            return json.loads(argument)
        case "exit":
            os._exit(int(argument))
        case "sys.exit":
            sys.exit(int(argument))
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "fork":
            # The copy returns, too, with another reward; `raw` forks behind Python's back.
            copy = ctypes.CDLL(None).fork() if argument == "raw" else os.fork()
            if copy:
                os.waitpid(copy, 0)
            return 0.5 if copy else 0.75
        case "stop":
            raise {"keyboard": KeyboardInterrupt, "cancelled": asyncio.CancelledError, "generator": GeneratorExit}[
                argument
            ]
        case "write":
            size, _, then = argument.partition(" ")
            os.write(2, b"x" * int(size))
            sys.stderr.write("the last line")
            sys.stderr.flush()
            return obey(prompt, then)
        case "allocate":
            return len(bytearray(int(argument)))
        case "herd":
            count, _, size = argument.partition(" ")
            script = f"held = bytearray(b'x') * {size}; input()"
            herd = [subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) for _ in range(int(count))]
            return herd[0].wait()
        case "open":
            opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(int(argument))]
            return len(opened)
        case "fill":
            size, _, path = argument.partition(" ")
            with Path(path).open("wb") as file:
                file.truncate(int(size))
            return 1
        case "hang":
            threading.Event().wait()
        case "regex":
            # Holds the interpreter lock: nothing in the process can interrupt it.
            re.match(r"(a+)+$", "a" * 64 + "b")
        case "spawn" | "daemon":
            # It holds the named pipe open. A daemon is twice forked, in a session of its own and with an empty environment.
            leave = "if os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)" if action == "daemon" else ""
            script = f"import os, sys, threading\n{leave}\nheld = open(sys.argv[1], 'wb', 0)\nos.write(1, b'.')\n"
            script += "threading.Event().wait()"
            started = subprocess.Popen([sys.executable, "-c", script, argument], env={}, stdout=subprocess.PIPE)
            assert started.stdout is not None and started.stdout.read(1) == b"."
            return 1
        case "print":
            print("1.0", flush=True)
            return 0.5
        case "hold":
            HELD.append(os.open(argument, os.O_WRONLY))
            return 1
        case "touch":
            Path(argument).touch()
            return 1
        case "look":
            # Itself, and nobody of outside where it is in a namespace.
            return Path(f"/proc/{os.getpid()}").samefile("/proc/self")
    return float(action)


async def obey_later(prompt: Prompt, completion: str) -> Any:
    """The same, async; and `meet N PATH` returns once N of them have met there, which takes N of them at once."""
    action, _, argument = completion.partition(" ")
    match action:
        case "wait":
            await asyncio.Event().wait()
        case "wait_in_the_first_life":
            if lived_before(Path(argument)):
                return 1
            await asyncio.Event().wait()
        case "meet":
            expected, _, path = argument.partition(" ")
            MET.setdefault(path, []).append(asyncio.get_running_loop().create_future())
            if len(MET[path]) == int(expected):
                for waiting in MET[path]:
                    waiting.set_result(None)
            await MET[path][-1]
            return 1
    return obey(prompt, completion)


def lived_before(trace: Path) -> bool:
    before = trace.exists()
    trace.touch()
    return before


HELD: list[int] = []
"""Open until the process ends."""
MET: dict[str, list["asyncio.Future[None]"]] = {}


def read_pipe(prompt: Prompt, completion: str) -> float:
    """Takes as long as somebody else needs to write into a named pipe and close it."""
    return float(Path(completion).read_text())


def forge(prompt: Prompt, completion: str) -> float:
    """Sends answers of its own through the pipe to the parent: looks for the pipe among all that is open, and for the nonce in
    the frames that it is called from."""
    frame = sys._getframe()
    while frame.f_back is not None and "request" not in frame.f_locals:
        frame = frame.f_back
    message = completion.replace("NONCE", frame.f_locals["request"].nonce).encode()
    for handle in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError):
            if socket.socket(fileno=os.dup(handle)).getsockname() == "":
                os.write(handle, len(message).to_bytes(4, "big") + message)
    return 0.0


class Ranked:
    """Judges a group: 1 for its longest text. Refuses a group with `raise` in it, and dies over one with `exit`."""

    async def judge(self, prompt: Prompt, attempts: Sequence[Attempt]) -> list[Verdict]:
        texts = [attempt.text for attempt in attempts]
        if texts[0].startswith("wait_in_the_first_life"):
            await obey_later(prompt, texts[0])
        if "raise" in texts:
            raise RuntimeError("no luck")
        if "exit" in texts:
            os._exit(3)
        if "short" in texts:
            return []
        longest = max(map(len, texts))
        return [Verdict(float(len(text) == longest), note=f"{len(text)} of {longest}" + " " * 1000) for text in texts]

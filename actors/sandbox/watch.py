"""Waits outside of a sandbox for its end, or ends it: at its deadline, at too much output, or when nobody waits for it any more."""

import json
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from actors.rewards.supervisor import memory_below
from actors.sandbox.program import Ending, Limits

CHUNK = 1 << 16
LOOK_S = 0.1
"""Between two looks at the memory of all processes together, which the kernel has no limit for without a control group."""
KILLED = "the first process of the sandbox was killed from outside"


@dataclass(slots=True)
class Streams:
    """Reading ends of what a program and its pid 1 write."""

    stdout: int
    stderr: int
    told: int
    written: dict[int, bytearray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.written = {self.stdout: bytearray(), self.stderr: bytearray()}
        for stream in self.written:
            os.set_blocking(stream, False)

    @property
    def size(self) -> int:
        return sum(map(len, self.written.values()))


def watch(
    init: int, streams: Streams, limits: Limits, caller: int, out_of_memory: Callable[[], bool]
) -> dict[str, Any]:
    """The outcome as a message. init: pid 1 of the sandbox.    caller: a socket that hangs up when nobody waits any more.
    out_of_memory: whether the kernel killed any of its processes for the memory of all."""
    started = looked = time.monotonic()
    handle = os.pidfd_open(init)
    waiting = select.poll()
    for readable in (handle, *streams.written):
        waiting.register(readable, select.POLLIN)
    waiting.register(caller, 0)
    beyond: Ending | None = None
    running = True
    while running and beyond is None:
        left = started + limits.wall_s - time.monotonic()
        events = dict(waiting.poll(max(0.0, min(left, LOOK_S)) * 1000))
        for stream in streams.written.keys() & events.keys():
            if not _read(streams, stream):
                waiting.unregister(stream)
        if streams.size > limits.output_bytes:
            beyond = "output"
        elif caller in events or left <= 0:
            beyond = "wall_time"
        elif time.monotonic() > looked + LOOK_S:
            looked, most = time.monotonic(), limits.memory_mib << 20
            beyond = "memory" if out_of_memory() or memory_below(init, most) > most else None
        running = handle not in events
    os.kill(init, signal.SIGKILL)
    # The kernel lets go of pid 1 when everything inside has ended.
    os.waitpid(init, 0)
    os.close(handle)
    for stream in streams.written:
        while streams.size <= limits.output_bytes and _read(streams, stream):
            pass
    if streams.size > limits.output_bytes:
        beyond = "output"
    elif beyond is None and out_of_memory():
        beyond = "memory"
    return _outcome(beyond, streams, limits, time.monotonic() - started)


def _read(streams: Streams, stream: int) -> bool:
    """Whether there may be more at once."""
    try:
        chunk = os.read(stream, CHUNK)
    except BlockingIOError:  # without isolation, somebody may have been left who could still write
        return False
    streams.written[stream] += chunk
    return bool(chunk)


def _outcome(beyond: Ending | None, streams: Streams, limits: Limits, wall_s: float) -> dict[str, Any]:
    told = os.read(streams.told, CHUNK).partition(b"\n")[0]
    message = json.loads(told) if told else {}
    if "refused" in message or "failed" in message:
        return message
    if not message and beyond is None:
        return {"failed": KILLED}
    status, cpu_s = message.get("status", 0), message.get("cpu_s", 0.0)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    out_of_time = number == signal.SIGXCPU or (number == signal.SIGKILL and cpu_s >= limits.cpu_s)
    ending = beyond or ("cpu_time" if out_of_time else "killed" if number else "ended")
    texts = [bytes(text[: limits.output_bytes]).decode(errors="replace") for text in streams.written.values()]
    code = number if ending == "killed" else os.WEXITSTATUS(status) if ending == "ended" else 0
    return {"ending": ending, "code": code, "stdout": texts[0], "stderr": texts[1], "wall_s": wall_s, "cpu_s": cpu_s}

"""A small process that starts sandboxes: a fork of it is ready at once, whatever the size of the process that asks.

Usage: python -I -S -c "…main(SOCKET, ISOLATED)". Consumes: requests of its socket, one after the other. Ends: when that is closed, which
the end of its parent does, too.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from actors.sandbox import control_group, inside, namespaces
from actors.sandbox.control_group import ControlGroup, NoControlGroup
from actors.sandbox.program import Limits, Program
from actors.sandbox.watch import Streams, watch

Group = ControlGroup | NoControlGroup
HEADER = 8
"""Bytes of the length that stands before each message."""


def main(handle: int, isolated: bool) -> None:
    """Serve until the socket closes."""
    os.set_inheritable(handle, False)
    with socket.socket(fileno=handle) as caller, contextlib.closing(control_group.make()) as group:
        while (request := receive(caller)) is not None:
            program = Program(request["source"], request["stdin"], Limits(**request["limits"]))
            # What a program has in its `/tmp` is memory, too.
            group.bound(program.limits.memory_mib + program.limits.scratch_mib << 20)
            warden = os.fork()
            if not warden:
                _serve(caller, program, isolated, group)
            if os.waitpid(warden, 0)[1]:
                send(caller, {"failed": "the process that watches the sandbox died"})


def send(end: socket.socket, message: dict[str, Any]) -> None:
    """One message, with its length before it."""
    body = json.dumps(message).encode()
    end.sendall(len(body).to_bytes(HEADER, "big") + body)


def receive(end: socket.socket) -> dict[str, Any] | None:
    """The next message; None where the other end is closed."""
    with contextlib.suppress(ConnectionResetError):
        header = _exactly(end, HEADER)
        if header is not None and (body := _exactly(end, int.from_bytes(header, "big"))) is not None:
            message: dict[str, Any] = json.loads(body)
            return message
    return None


def _exactly(end: socket.socket, size: int) -> bytes | None:
    received = bytearray()
    while len(received) < size:
        if not (chunk := end.recv(size - len(received))):
            return None
        received += chunk
    return bytes(received)


def _serve(caller: socket.socket, program: Program, isolated: bool, group: Group) -> NoReturn:
    """One program, in a process that enters its namespaces and leaves with them."""
    code = 1
    try:
        try:
            answer = (_run_isolated if isolated else _run_as_it_is)(caller, program, group)
        except OSError as error:
            answer = inside.why(error)
        send(caller, answer)
        code = 0
    except BrokenPipeError:
        code = 0  # nobody waits any more
    finally:
        os._exit(code)


def _run_isolated(caller: socket.socket, program: Program, group: Group) -> dict[str, Any]:
    still_root = namespaces.enter()
    streams, pipes = _pipes(program)
    if not (init := os.fork()):
        caller.close()
        inside.main(program, pipes, still_root, group.enter)
    return _watched(init, streams, pipes, program, caller, group)


def _run_as_it_is(caller: socket.socket, program: Program, group: Group) -> dict[str, Any]:
    scratch = Path(tempfile.mkdtemp(prefix="bvblend-program-"))
    try:
        streams, pipes = _pipes(program)
        if not (init := os.fork()):
            caller.close()
            inside.main_without_isolation(program, pipes, scratch, group.enter)
        answer = _watched(init, streams, pipes, program, caller, group)
        with contextlib.suppress(ProcessLookupError):  # its group
            os.killpg(init, signal.SIGKILL)
        return answer
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _pipes(program: Program) -> tuple[Streams, inside.Pipes]:
    stdin = os.memfd_create("stdin")
    with os.fdopen(os.dup(stdin), "wb") as file:
        file.write(inside.encoded(program.stdin))
    os.lseek(stdin, 0, os.SEEK_SET)
    (stdout, to_stdout), (stderr, to_stderr), (told, tell) = os.pipe(), os.pipe(), os.pipe()
    return Streams(stdout, stderr, told), inside.Pipes(stdin, to_stdout, to_stderr, tell)


def _watched(
    init: int, streams: Streams, pipes: inside.Pipes, program: Program, caller: socket.socket, group: Group
) -> dict[str, Any]:
    before = group.killed()
    for end in (pipes.stdin, pipes.stdout, pipes.stderr, pipes.tell):
        os.close(end)
    return watch(init, streams, program.limits, caller.fileno(), lambda: group.killed() > before)

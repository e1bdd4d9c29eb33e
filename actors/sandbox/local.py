"""Sandboxes of this machine, as the process that asks for them sees them."""

import dataclasses
import socket
import subprocess
import sys
import threading
from pathlib import Path

from actors.sandbox.program import Outcome, Program, SandboxError, SandboxRefusedError
from actors.sandbox.zygote import receive, send

OWN_PACKAGES = str(Path(__file__).parents[2])
START = "import sys; sys.path.append(sys.argv[1]); from actors.sandbox.zygote import main; main(int(sys.argv[2]), sys.argv[3] == '1')"


class LocalSandbox:
    """Runs one program at a time; whoever else asks waits. Its zygote is started with the first one, and again if it died."""

    def __init__(self, isolated: bool = True) -> None:
        """isolated: False runs programs with the rights of this process, and guards nothing but the limits of each process."""
        self._isolated = isolated
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def run(self, program: Program) -> Outcome:
        request = {"source": program.source, "stdin": program.stdin, "limits": dataclasses.asdict(program.limits)}
        with self._turn:
            try:
                zygote = self._started()
                send(zygote, request)
                answer = receive(zygote)
            except BaseException as error:
                # What is under way ends with its socket.
                self._end()
                if isinstance(error, OSError):
                    raise SandboxError(f"the sandbox's process is gone: {error}") from error
                raise
            if answer is None:
                self._end()
                raise SandboxError("the sandbox's process was killed")
        if "refused" in answer:
            raise SandboxRefusedError(
                f"this machine cannot isolate programs ({answer['refused']}); allow unprivileged user namespaces, or "
                "name an `http` sandbox or `none`"
            )
        if "failed" in answer:
            raise SandboxError(answer["failed"])
        return Outcome(**answer)

    def close(self) -> None:
        with self._turn:
            self._end()

    def _started(self) -> socket.socket:
        if self._socket is None:
            self._socket, far_end = socket.socketpair()
            with far_end:
                handle = far_end.fileno()
                command = [sys.executable, "-I", "-S", "-c", START, OWN_PACKAGES, str(handle), str(int(self._isolated))]
                # Without the environment, of which nothing may reach a program; not in the group that a terminal signals.
                self._process = subprocess.Popen(
                    command, pass_fds=(handle,), env={}, stdin=subprocess.DEVNULL, start_new_session=True
                )
        return self._socket

    def _end(self) -> None:
        if self._socket is not None and self._process is not None:
            self._socket.close()
            self._process.wait()
        self._socket = self._process = None

"""Pid 1 of a sandbox: makes the inside, starts the program, waits for it. When it ends, the kernel ends everything else inside."""

import json
import os
import resource
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from actors.sandbox import filesystem, libc, limits, namespaces, system_calls
from actors.sandbox.program import Program

FLAGS = ("-P", "-s", "-B", "-X", "utf8")
"""Of Python: nothing of the user's, no .pyc files, UTF-8."""


@dataclass(frozen=True, slots=True)
class Pipes:
    """Descriptors: the program's standard streams, and where pid 1 tells how it ended."""

    stdin: int
    stdout: int
    stderr: int
    tell: int


def main(program: Program, pipes: Pipes, still_root: bool, be_bounded: Callable[[], None]) -> NoReturn:
    """In namespaces that the parent has entered.    be_bounded: counts the memory of this process, and of all that it starts."""
    try:
        be_bounded()
        with namespaces.open_proc() as proc:
            filesystem.build(encoded(program.source), program.limits.scratch_mib)
            socket.sethostname("sandbox")
            namespaces.lower(still_root, proc)
        _wait_for(program, pipes, filesystem.PROGRAM, isolated=True)
    except Exception as error:
        tell(pipes.tell, why(error))
    finally:
        os._exit(0)


def main_without_isolation(program: Program, pipes: Pipes, scratch: Path, be_bounded: Callable[[], None]) -> NoReturn:
    """The same process without any of that, in a directory of the machine and a process group of its own."""
    try:
        be_bounded()
        os.setpgid(0, 0)
        os.chdir(scratch)
        source = scratch / filesystem.PROGRAM.name
        source.write_bytes(encoded(program.source))
        _wait_for(program, pipes, source, isolated=False)
    except Exception as error:
        tell(pipes.tell, why(error))
    finally:
        os._exit(0)


def _wait_for(program: Program, pipes: Pipes, source: Path, isolated: bool) -> None:
    libc.die_with_parent()
    hung_up = select.poll()
    hung_up.register(pipes.tell, 0)
    if hung_up.poll(0):
        return  # the parent had ended before it could be told what its end means
    child = os.fork()
    if not child:
        _become(program, pipes, source, isolated)
    for stream in (pipes.stdin, pipes.stdout, pipes.stderr):
        os.close(stream)
    while (ended := os.wait())[0] != child:
        pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    tell(pipes.tell, {"status": ended[1], "cpu_s": used.ru_utime + used.ru_stime})


def _become(program: Program, pipes: Pipes, source: Path, isolated: bool) -> NoReturn:
    """The program. All descriptors but its own are closed when it begins."""
    try:
        for number, stream in enumerate((pipes.stdin, pipes.stdout, pipes.stderr)):
            os.dup2(stream, number)
        scratch = str(Path.cwd())
        # Hashes of texts do not change from run to run: the same program does the same, also where it goes through a set.
        environment = {"HOME": scratch, "TMPDIR": scratch, "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
        limits.apply(program.limits, own_user_namespace=isolated)
        if isolated:
            system_calls.install()
        python = filesystem.interpreter()
        os.execve(python, [python, *FLAGS, str(source)], environment)
    except Exception as error:
        tell(pipes.tell, why(error))
    finally:
        os._exit(0)


def why(error: Exception) -> dict[str, str]:
    """What the kernel refuses is told apart from what is wrong here."""
    if isinstance(error, OSError):
        return {"refused": " ".join(filter(None, (error.strerror, error.filename and str(error.filename))))}
    return {"failed": f"{type(error).__name__}: {error}"}


def encoded(text: str) -> bytes:
    """As UTF-8, also halves of characters, which Python then refuses itself."""
    return text.encode(errors="surrogatepass")


def tell(handle: int, message: dict[str, Any]) -> None:
    """One line of JSON; the first one counts."""
    os.write(handle, json.dumps(message).encode() + b"\n")

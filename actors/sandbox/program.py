"""What is run, within which bounds, and what came of it."""

from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may have. What goes beyond ends it, or is refused to it."""

    wall_s: float = 10.0
    """Seconds by the clock, for the program and all that it starts together."""
    cpu_s: int = 10
    """Seconds of computing, for each process."""
    memory_mib: int = 512
    """Address space of each process, and memory of all together."""
    processes: int = 8
    """Processes and threads at once."""
    open_files: int = 64
    """Open files of each process."""
    scratch_mib: int = 64
    """What its directory may hold; also the size of its largest file."""
    output_bytes: int = 1 << 20
    """What it may write to stdout and stderr together."""


@dataclass(frozen=True, slots=True)
class Program:
    """Python source and what it reads from stdin."""

    source: str
    stdin: str = ""
    limits: Limits = field(default_factory=Limits)


Ending = Literal["ended", "killed", "wall_time", "cpu_time", "memory", "output"]
"""By itself, with an exit code; by a signal; or by going beyond one of its limits."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended. None of it is to be trusted: the program may write what it likes and end as it likes."""

    ending: Ending
    code: int
    """Exit code where it `ended`, the signal's number where it was `killed`, else 0."""
    stdout: str
    stderr: str
    wall_s: float
    cpu_s: float


class SandboxError(RuntimeError):
    """The sandbox, and not the program, failed; nothing is known of the program."""


class SandboxRefusedError(SandboxError):
    """This machine cannot do it; the message says what is missing, in one sentence."""


class Sandbox(Protocol):
    """Runs programs, one at a time for each thread that calls."""

    def run(self, program: Program) -> Outcome:
        """Returns when the program and all that it started are gone. Raises SandboxError."""
        ...

    def close(self) -> None:
        """May be called twice."""
        ...

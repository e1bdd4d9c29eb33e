"""What this machine gives to isolate programs with."""

from dataclasses import dataclass

from actors.sandbox import control_group
from actors.sandbox.local import LocalSandbox
from actors.sandbox.program import Program, SandboxError

LOOK = "import os; print(os.getuid(), len(os.listdir('/')))"


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether programs can be isolated here, and why not."""

    isolates: bool
    missing: str | None
    control_groups: int | None
    """Version of the control groups that bound the memory of all processes of a program; None where it can only be looked at."""


def probe() -> Probe:
    """Try it with a program of one line, some 50 ms."""
    sandbox = LocalSandbox()
    try:
        sandbox.run(Program(LOOK))
    except SandboxError as error:
        return Probe(False, str(error), None)
    finally:
        sandbox.close()
    group = control_group.make()
    group.close()
    return Probe(True, None, group.version)

"""What this machine gives to isolate programs with."""

from dataclasses import dataclass

from actors.sandbox.local import LocalSandbox
from actors.sandbox.program import Program, SandboxError

LOOK = "import os; print(os.getuid(), len(os.listdir('/')))"


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether programs can be isolated here, and why not."""

    isolates: bool
    missing: str | None


def probe() -> Probe:
    """Try it with a program of one line, some 50 ms."""
    sandbox = LocalSandbox()
    try:
        sandbox.run(Program(LOOK))
    except SandboxError as error:
        return Probe(False, str(error))
    finally:
        sandbox.close()
    return Probe(True, None)

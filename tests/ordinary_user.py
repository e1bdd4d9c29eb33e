"""Runs programs in the sandbox as `nobody`, whose machine is this one, but that everybody may walk to this Python and this code.

Usage, as root: python -I -S ordinary_user.py; JSON of {name: source and limits} on stdin, of {name: outcome} on stdout.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

OWN = Path(__file__).parents[1]
sys.path.append(str(OWN))

from actors.sandbox import libc  # noqa: E402
from actors.sandbox.filesystem import MS_BIND, MS_REC, MS_SLAVE  # noqa: E402
from actors.sandbox.local import LocalSandbox  # noqa: E402
from actors.sandbox.namespaces import CLONE_NEWNS, NOBODY  # noqa: E402
from actors.sandbox.program import Limits, Program  # noqa: E402


def main() -> None:
    libc.call("unshare", CLONE_NEWNS)
    libc.call("mount", None, b"/", None, MS_REC | MS_SLAVE, None)
    for place in (Path(sys.base_prefix), OWN):
        open_the_way_to(place)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    sandbox = LocalSandbox()
    outcomes = {}
    for name, request in json.load(sys.stdin).items():
        outcomes[name] = dataclasses.asdict(sandbox.run(Program(request["source"], "", Limits(**request["limits"]))))
    sandbox.close()
    json.dump(outcomes, sys.stdout)


def open_the_way_to(place: Path) -> None:
    """Puts an open directory over the first above `place` that is closed to others, and `place` into it."""
    closed = next((above for above in reversed(place.parents) if not above.stat().st_mode & 0o001), None)
    if closed is not None:
        handle = os.open(place, os.O_PATH)
        libc.call("mount", b"tmpfs", bytes(closed), b"tmpfs", 0, b"mode=755")
        place.mkdir(parents=True)
        libc.call("mount", f"/proc/self/fd/{handle}".encode(), bytes(place), None, MS_BIND | MS_REC, None)


main()

"""The sandbox holds what hostile programs try, as root and as an ordinary user, and leaves nothing behind."""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.rewards.protocol import MAX_REASON
from actors.sandbox import namespaces, system_calls
from actors.sandbox.local import LocalSandbox
from actors.sandbox.probe import Probe, probe
from actors.sandbox.program import Outcome, Program, SandboxError
from deploy.cluster.doctor import programs
from tests.conftest import ROOT
from tests.hostile_programs import ENDED, HELD, MARK, bounds_of, source_of

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process and no mount, whatever the program was; files it has in a mount of its own."""
    before = mounts()
    yield
    assert processes_called(MARK) == []
    assert mounts() == before


def mounts() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line for line in lines if " - tmpfs" in line or " /tmp" in line or " /old" in line}


def processes_called(name: str) -> list[int]:
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (each / "comm").read_text().strip() == name:
                found.append(int(each.name))
    return found


def held(outcome: Outcome) -> bool:
    return outcome.ending == "ended" and "HELD" in outcome.stdout and "ESCAPED" not in outcome.stdout


@pytest.mark.parametrize("name", HELD)
def test_a_hostile_program_reaches_nothing(sandbox: LocalSandbox, name: str) -> None:
    outcome = sandbox.run(Program(source_of(name), limits=bounds_of(name)))
    assert held(outcome), outcome


@pytest.mark.parametrize("name", ENDED)
def test_a_program_that_goes_on_is_ended_within_a_second(sandbox: LocalSandbox, name: str) -> None:
    limits = bounds_of(name)
    outcome = sandbox.run(Program(source_of(name), limits=limits))
    assert outcome.ending == ENDED[name][0]
    assert outcome.wall_s < limits.wall_s + 1.0
    assert len(outcome.stdout) + len(outcome.stderr) <= 2 * limits.output_bytes


def test_an_ordinary_user_has_the_same_sandbox() -> None:
    """In a process that gave root up; where the tests are not run by root, all others here are by an ordinary user."""
    names = list(HELD) if os.geteuid() == 0 else []
    requests = {name: {"source": source_of(name), "limits": dataclasses.asdict(bounds_of(name))} for name in names}
    script = [os.path.realpath(sys.executable), "-I", "-S", str(ROOT / "tests/ordinary_user.py")]
    told = subprocess.run(script, input=json.dumps(requests), capture_output=True, text=True, check=bool(names)).stdout
    outcomes = {name: Outcome(**outcome) for name, outcome in json.loads(told or "{}").items()}
    assert [name for name, outcome in outcomes.items() if not held(outcome)] == []
    assert list(outcomes) == names


def test_these_programs_do_escape_where_there_is_no_sandbox() -> None:
    open_doors = LocalSandbox(isolated=False)
    for name in ("network", "environment", "files_of_the_machine"):
        outcome = open_doors.run(Program(source_of(name), limits=bounds_of(name)))
        assert "ESCAPED" in outcome.stdout
    open_doors.close()


@pytest.mark.parametrize("isolated", [True, False])
def test_a_program_reads_and_writes(isolated: bool) -> None:
    sandbox = LocalSandbox(isolated)
    source = (
        "import sys\nprint(sys.stdin.read().upper())\nprint('é', file=sys.stderr)\nopen('f', 'w').write('x')\nexit(7)"
    )
    outcome = sandbox.run(Program(source, "straße\n" * 30000))
    assert (outcome.ending, outcome.code) == ("ended", 7)
    assert (outcome.stdout, outcome.stderr) == ("STRASSE\n" * 30000 + "\n", "é\n")
    where, was_there = sandbox.run(Program("import os; print(os.getcwd(), os.path.exists('f'))")).stdout.split()
    assert was_there == "False"
    assert isolated or not Path(where).exists()
    sandbox.close()


def test_python_works_inside(sandbox: LocalSandbox) -> None:
    source = """
import asyncio, concurrent.futures, decimal, multiprocessing, sqlite3, subprocess, sys, tempfile, threading
if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool:
        print(pool.map(abs, [-1, 2]))
    print(asyncio.run(asyncio.sleep(0, "awake")))
    with tempfile.NamedTemporaryFile() as file:
        print(file.name.startswith("/tmp/"))
    print(subprocess.run([sys.executable, "-c", "print(5)"], capture_output=True).stdout)
"""
    assert sandbox.run(Program(source)).stdout == "[1, 2]\nawake\nTrue\nb'5\\n'\n"


def test_the_same_program_does_the_same_twice(sandbox: LocalSandbox) -> None:
    program = Program("print(list({str(number) for number in range(50)}))")
    assert sandbox.run(program).stdout == sandbox.run(program).stdout


def test_packages_that_are_installed_beside_python_are_hidden(sandbox: LocalSandbox) -> None:
    assert "ModuleNotFoundError" in sandbox.run(Program("import pydantic")).stderr


def test_source_that_is_no_text_is_the_programs_own_error(sandbox: LocalSandbox) -> None:
    for source in ("\ud800", "\0", "def", "x = " + "(" * 10000):
        outcome = sandbox.run(Program(source))
        assert outcome.code or outcome.ending == "killed"


def test_threads_take_turns(sandbox: LocalSandbox) -> None:
    said: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda n=n: said.update({n: sandbox.run(Program(f"print({n})")).stdout}))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {n: f"{n}\n" for n in range(4)}


def test_a_zygote_that_was_killed_is_an_error_of_the_sandbox_and_the_next_program_runs() -> None:
    sandbox = LocalSandbox()
    sandbox.run(Program("pass"))
    assert sandbox._process is not None
    sandbox._process.kill()
    sandbox._process.wait()
    with pytest.raises(SandboxError):
        sandbox.run(Program("pass"))
    assert sandbox.run(Program("print(1)")).stdout == "1\n"
    sandbox.close()
    sandbox.close()


def test_a_program_ends_with_who_asked_for_it() -> None:
    """Who asks is killed while the program runs: nobody is left to end it but the kernel."""
    code = (
        "from actors.sandbox.local import LocalSandbox\nfrom actors.sandbox.program import Program\n"
        "from tests.hostile_programs import PRELUDE\n"
        "LocalSandbox().run(Program(PRELUDE + 'time.sleep(600)'))"
    )
    asks = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert within(20.0, lambda: bool(processes_called(MARK)))
    asks.kill()
    asks.wait()
    assert within(1.0, lambda: not processes_called(MARK))


def within(seconds: float, condition) -> bool:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(met)


def test_a_machine_that_cannot_is_refused_in_one_sentence() -> None:
    """A seccomp filter like a container's: this process's children may make no namespace."""
    code = (
        "from actors.sandbox import system_calls, libc; from deploy.cluster.doctor import programs\n"
        "libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1); system_calls.install(); print(programs().found)"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.startswith("this machine cannot isolate programs (unshare: Operation not permitted); ")
    assert told.count("\n") == 1 and "`none`" in told and len(told) < MAX_REASON - len("SandboxRefusedError: ")


def test_this_machine_can() -> None:
    found = probe()
    assert found == Probe(True, None, found.control_groups)
    assert programs().found.startswith("programs are isolated")


@pytest.mark.parametrize("machine", system_calls.AUDIT_ARCHITECTURE)
def test_the_filter_refuses_exactly_what_it_lists(machine: str) -> None:
    """Run by an interpreter of our own over every number, so that the other architecture is tested as well."""
    code = list(system_calls.filter_code(machine))
    column = list(system_calls.AUDIT_ARCHITECTURE).index(machine)
    refused = {numbers[column] for numbers in system_calls.REFUSED.values()} - {None}
    own = system_calls.AUDIT_ARCHITECTURE[machine]
    for number in range(600):
        late = number > system_calls.LAST_KNOWN or number == system_calls.CLONE3[column]
        action = run_filter(code, number, own, 1)
        assert (action == system_calls._ALLOW) == (number not in refused and not late), number
    assert run_filter(code, 0, own + 1, 1) == system_calls._KILL
    for flag in (1 << bit for bit in range(31)):
        action = run_filter(code, system_calls.CLONE[column], own, flag)
        assert (action == system_calls._ALLOW) == (flag not in NAMESPACE_FLAGS)
    for family in range(50):
        action = run_filter(code, system_calls.SOCKET[column], own, family)
        assert (action == system_calls._ALLOW) == (family == socket.AF_UNIX)


NAMESPACE_FLAGS = {
    namespaces.CLONE_NEWNS,
    namespaces.CLONE_NEWCGROUP,
    namespaces.CLONE_NEWUTS,
    namespaces.CLONE_NEWIPC,
    namespaces.CLONE_NEWUSER,
    namespaces.CLONE_NEWPID,
    namespaces.CLONE_NEWNET,
}


def run_filter(code: list[system_calls.Instruction], number: int, architecture: int, argument: int) -> int:
    """What classic BPF does, of <linux/filter.h>."""
    words, place, held = {0: number, 4: architecture, 16: argument}, 0, 0
    while True:
        operation, if_true, if_false, operand = code[place]
        place += 1
        if operation == 0x06:
            return operand
        if operation == 0x20:
            held = words[operand]
        else:
            tests = {0x15: held == operand, 0x25: held > operand, 0x45: bool(held & operand)}
            place += if_true if tests[operation] else if_false


def test_the_docs_say_how_long_a_call_was_measured_to_take() -> None:
    figures = json.loads((ROOT / "benchmarks/results/verifiers.json").read_text(encoding="utf-8"))["figures"]
    (seconds,) = (each["value"] for each in figures if each["name"] == "sandbox namespaces: one program, by the clock")
    assert f"A call takes {1000 * seconds:.0f} ms" in (ROOT / "docs/sandbox.md").read_text(encoding="utf-8")

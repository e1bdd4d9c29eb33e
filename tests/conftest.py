"""What every layer shares: the command as a user runs it, and the proof that nothing of it is left behind."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hypothesis
import pytest

from deploy.cluster.doctor_bundle import stacks
from deploy.run.watchdog import marked_processes

# How long an example takes says how busy the machine is, and nothing of the code.
hypothesis.settings.register_profile("bvblend", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("bvblend")

ROOT = Path(__file__).parents[1]
MARK = "BVBLEND_TEST_PROCESS"


class Command:
    """One `bvblend` process, with everything that it starts."""

    def __init__(self, arguments: tuple[str, ...], log: Path, cwd: Path, prefix: Sequence[str] = ()) -> None:
        """prefix: what the command line begins with, to run it on another node."""
        self.mark = uuid.uuid4().hex
        self.log = log
        environment = os.environ | {MARK: self.mark, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "deploy.cli", *arguments],
                cwd=cwd,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def wait(self, timeout_s: float) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError("\n".join([f"not done in {timeout_s} s:", self.output(), *self.stacks()])) from None

    def stacks(self) -> list[str]:
        """What every process of it is doing."""
        return [f"{line}:\n{stacks(pid)}" for pid, line in self.alive().items()]

    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, timeout_s: float) -> None:
        """Wait until the command has printed `text`."""
        deadline = time.monotonic() + timeout_s
        while text not in self.output():
            assert self.process.poll() is None, f"ended before it printed {text!r}:\n{self.output()}"
            assert time.monotonic() < deadline, f"did not print {text!r} in {timeout_s} s:\n{self.output()}"
            wait_a_moment(self.process)

    def alive(self) -> dict[int, str]:
        return marked_processes(MARK, self.mark)

    def wait_until_nothing_is_left(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while left := self.alive():
            assert time.monotonic() < deadline, f"still there after {timeout_s} s: {left}"
            wait_a_moment(self.process)

    def end(self) -> None:
        for pid in (self.process.pid, *self.alive()):
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue  # it had ended already
        self.process.wait(10)


def wait_a_moment(process: subprocess.Popen[bytes]) -> None:
    """Give the process a fifth of a second, or less if it ends."""
    try:
        process.wait(0.2)
    except subprocess.TimeoutExpired:
        return


@pytest.fixture
def bvblend(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Start the command with the given arguments; whatever is left of it ends with the test."""
    started: list[Command] = []

    def start(*arguments: object, cwd: Path = ROOT, prefix: Sequence[str] = ()) -> Command:
        command = Command(tuple(map(str, arguments)), tmp_path / f"output-{len(started)}.log", cwd, prefix)
        started.append(command)
        return command

    yield start
    for command in started:
        command.end()


def settings(**values: object) -> list[str]:
    """`--set` arguments; double underscores stand for dots."""
    return [part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]

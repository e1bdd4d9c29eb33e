"""What every layer shares: the command as a user runs it, and the proof that nothing of it is left behind."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import hypothesis
import pytest

from deploy.cluster.doctor_bundle import stacks
from deploy.run.watchdog import marked_processes
from tests.turns import among_others

# How long an example takes says how busy the machine is, and nothing of the code.
hypothesis.settings.register_profile("bvblend", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("bvblend")

# A shell without job control starts what runs in its background with Ctrl-C ignored, nohup with a lost terminal ignored, and every
# process below inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
MARK = "BVBLEND_TEST_PROCESS"
LIGHT = ("unit", "contract")
"""Layers that run side by side on all cores. The others take a core or two each, and deadlines hold in them: see tests/turns.py."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bvblend")
    group.addoption("--part", choices=("light", "heavy"), help=f"only the layers {', '.join(LIGHT)}; or all others")
    group.addoption("--full", action="store_true", help="at full length: what is marked long, and every size")


def _is_light(path: Path) -> bool:
    return path.relative_to(TESTS).parts[0] in LIGHT


def _of_other_part(path: Path, config: pytest.Config) -> bool:
    part = config.getoption("--part")
    return part is not None and _is_light(path) != (part == "light")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    layer = collection_path.is_dir() and collection_path.parent == TESTS
    return True if layer and _of_other_part(collection_path, config) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # A path that is named is collected whatever its part is.
    others = [item for item in items if _of_other_part(item.path, config)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in set(others)]
    if not config.getoption("--full"):
        for item in items:
            if item.get_closest_marker("long") is not None:
                item.add_marker(pytest.mark.skip(reason="runs with --full (make test-long)"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with nullcontext() if _is_light(item.path) else among_others():
        return (yield)


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether sizes are those of `make test-long`; what is asserted is the same."""
    return bool(pytestconfig.getoption("--full"))


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
                start_new_session=True,
            )

    def wait(self, timeout_s: float) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError("\n".join([f"not done in {timeout_s} s:", self.output(), *self.stacks()])) from None

    def signal_group(self, number: signal.Signals) -> None:
        """As a scheduler, `timeout` or a terminal does: to the process and to whatever is in its process group."""
        self.process.send_signal(number)
        os.killpg(self.process.pid, number)

    def stacks(self) -> list[str]:
        """What every process of it is doing."""
        return [f"{line}:\n{stacks(pid)}" for pid, line in self.alive().items()]

    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, timeout_s: float, times: int = 1) -> None:
        """Wait until the command has printed `text` so many times."""
        deadline = time.monotonic() + timeout_s
        while self.output().count(text) < times:
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


@contextmanager
def commands(logs: Path) -> Iterator[Callable[..., Command]]:
    """Start the command with the given arguments; whatever is left of it ends with the context. logs: where outputs go."""
    started: list[Command] = []

    def start(*arguments: object, cwd: Path = ROOT, prefix: Sequence[str] = ()) -> Command:
        command = Command(tuple(map(str, arguments)), logs / f"output-{len(started)}.log", cwd, prefix)
        started.append(command)
        return command

    try:
        yield start
    finally:
        for command in started:
            command.end()


@pytest.fixture
def bvblend(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Start the command with the given arguments; whatever is left of it ends with the test."""
    with commands(tmp_path) as start:
        yield start


def settings(**values: object) -> list[str]:
    """`--set` arguments; double underscores stand for dots."""
    return [part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]


def brief_evaluations() -> list[str]:
    """Settings of the recipe cold_start: one sample of each of a dozen prompts. As shipped, its two evaluations take most of a short run."""
    held_out = {f"prompts__sources__{number}__held_out": 1 for number in range(12)}
    return settings(evaluation__train_prompts=4, evaluation__samples=1, **held_out)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A directory that `make` fills once per test session, however many workers ask for it. To be read only."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory, done = shared / name, shared / f"{name}.done"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            make(directory)
            done.touch()
    return directory


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on at the moment."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports

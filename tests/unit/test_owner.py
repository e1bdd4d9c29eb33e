"""A run directory has one owner at a time, and whoever looks sees whether it lives."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import pytest

from deploy.config.recipe import ConfigError
from deploy.rundir import owner as owner_module
from deploy.rundir.owner import DEAD_AFTER_S, LOST_EXIT_CODE, OWNER_FILE, RunOwner, read_owner

pytestmark = pytest.mark.unit

OWN = """
import subprocess, sys, time
from pathlib import Path
from deploy.rundir import owner
owner.BEAT_S = 0.05
with owner.RunOwner.acquire(Path(sys.argv[1])):
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    child = subprocess.Popen(sleep, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # as a run starts Ray's processes
    print(child.pid, flush=True)
    sys.stdin.readline()
    child.kill()
"""


def own(directory: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", OWN, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


def line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


def elsewhere(directory: Path, silent_s: float) -> None:
    """An owner on another host, which gave its last sign of life so long ago."""
    row = {"token": "t", "pid": 1, "host": "node-7", "place": "node-7 x", "begun": 1.0, "started": 1.0}
    (directory / OWNER_FILE).write_text(json.dumps(row))
    then = time.time() - silent_s
    os.utime(directory / OWNER_FILE, (then, then))


def test_a_second_owner_is_refused_and_a_killed_one_is_followed_at_once(tmp_path: Path) -> None:
    first = own(tmp_path)
    child = int(line(first.stdout))
    try:
        seen = read_owner(tmp_path)
        assert seen is not None and seen.alive and seen.owner.pid == first.pid
        for take_over in (False, True):
            with pytest.raises(ConfigError, match=rf"is run by process {first.pid} on .* since 20.*kill {first.pid}"):
                RunOwner.acquire(tmp_path, take_over)
        first.kill()
        first.wait()
        seen = read_owner(tmp_path)
        assert seen is not None and not seen.alive and seen.owner.pid == first.pid
        with RunOwner.acquire(tmp_path):  # though a child of the dead one still runs
            again = read_owner(tmp_path)
            assert again is not None and again.alive and again.owner.pid == os.getpid()
        assert read_owner(tmp_path) is None
    finally:
        os.kill(child, signal.SIGKILL)


def test_of_two_that_begin_at_once_one_is_the_owner(tmp_path: Path) -> None:
    both = [own(tmp_path) for _ in range(2)]
    try:
        # The one that is refused ends; the other waits for its line.
        deadline = time.monotonic() + 30
        while all(one.poll() is None for one in both) and time.monotonic() < deadline:
            time.sleep(0.02)
        (refused,) = [one for one in both if one.poll() is not None]
        (owner,) = [one for one in both if one is not refused]
        assert refused.stderr is not None and "ConfigError" in refused.stderr.read()
        seen = read_owner(tmp_path)
        assert seen is not None and seen.owner.pid == owner.pid
        _, _ = owner.communicate("\n", timeout=10)
        assert owner.returncode == 0
    finally:
        for one in both:
            one.kill()
            one.communicate()


def test_an_owner_on_another_host_lives_as_long_as_it_beats(tmp_path: Path) -> None:
    elsewhere(tmp_path, silent_s=4.0)
    seen = read_owner(tmp_path)
    assert seen is not None and seen.alive
    beat = threading.Timer(0.3, elsewhere, (tmp_path, 0.0))
    beat.start()
    with pytest.raises(ConfigError, match=r"process 1 on node-7 .*a sign of life 0 s ago.*--take-over"):
        RunOwner.acquire(tmp_path)
    beat.join()
    with RunOwner.acquire(tmp_path, take_over=True):
        pass
    elsewhere(tmp_path, silent_s=DEAD_AFTER_S - 0.5)
    with RunOwner.acquire(tmp_path):  # half a second later it is dead
        pass
    elsewhere(tmp_path, silent_s=DEAD_AFTER_S + 1)
    seen = read_owner(tmp_path)
    assert seen is not None and not seen.alive
    with RunOwner.acquire(tmp_path):
        pass


def test_an_owner_that_was_taken_over_ends(tmp_path: Path) -> None:
    """It comes back from a sleep, say, and must not write into what is another's by now."""
    first = own(tmp_path)
    child = int(line(first.stdout))
    try:
        elsewhere(tmp_path, silent_s=0.0)
        assert first.wait(timeout=10) == LOST_EXIT_CODE
        assert first.stderr is not None and "was taken over by process 1 on node-7" in first.stderr.read()
    finally:
        os.kill(child, signal.SIGKILL)


def test_it_beats_and_a_directory_that_cannot_be_written_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_module, "BEAT_S", 0.02)
    with RunOwner.acquire(tmp_path):
        os.utime(tmp_path / OWNER_FILE, (1.0, 1.0))
        deadline = time.monotonic() + 5
        while (tmp_path / OWNER_FILE).stat().st_mtime == 1.0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - (tmp_path / OWNER_FILE).stat().st_mtime < 5
    with pytest.raises(ConfigError, match="nowhere cannot be written to: No such file"):
        RunOwner.acquire(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "1"}', '{"pid": 1}'])
def test_an_owner_file_that_says_nothing_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / OWNER_FILE).write_text(content)
    assert read_owner(tmp_path) is None
    with RunOwner.acquire(tmp_path):
        pass

"""Memory that processes share by a path: locked by whoever reads, valid for as long, and never left behind."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actors.weights.memory_file import MemoryFile, map_locked
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

HOLDER = """
import sys
import numpy as np
from actors.weights.memory_file import MemoryFile
file = MemoryFile(2**20)
file.bytes[:] = np.arange(2**20, dtype=np.uint8)
print(file.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder() -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Another process that has a MemoryFile, and the path of it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate(timeout=10)


def opened(under: str = "bvblend-weights") -> set[tuple[str, int]]:
    """The handles that this process has open to such memory, or to files with `under` in their path; one is never counted for another."""
    targets = ((os.path.realpath(handle), handle) for handle in Path("/proc/self/fd").iterdir())
    return {(target, handle.stat().st_ino) for target, handle in targets if under in target and handle.exists()}


def test_a_reader_keeps_what_it_reads_after_its_owner_was_killed_and_nothing_stays(
    holder: tuple["subprocess.Popen[str]", str],
) -> None:
    process, path = holder
    before = opened()
    mapped = map_locked(path)
    assert mapped is not None
    found, own_path = mapped
    process.kill()
    process.wait(10)
    assert not Path(path).exists()
    assert np.array_equal(found, np.arange(2**20, dtype=np.uint8))
    assert np.array_equal(np.memmap(own_path, dtype=np.uint8, mode="r"), found), "vLLM's process would not find it"
    assert opened() - before
    del found, mapped
    assert not opened() - before and not Path(own_path).exists()


def test_what_is_read_cannot_be_locked_and_what_is_locked_cannot_be_read() -> None:
    file = MemoryFile(64)
    first, second = map_locked(file.path), map_locked(file.path)
    assert not file.lock()
    del first
    assert not file.lock()
    part = None if second is None else second[0][3:5]
    del second
    assert not file.lock(), "a part of the array is held"
    del part
    assert file.lock()
    assert map_locked(file.path) is None
    file.unlock()
    assert map_locked(file.path) is not None


def test_the_same_memory_is_written_again_and_goes_with_its_owner() -> None:
    before = opened()
    file = MemoryFile(64)
    file.bytes[:] = 1
    mapped = map_locked(file.path)
    assert mapped is not None and (mapped[0] == 1).all()
    file.bytes[:] = 2
    assert (mapped[0] == 2).all()
    path = file.path
    del file, mapped
    assert not opened() - before and not Path(path).exists()


@pytest.mark.parametrize("what", ["nothing", "an empty file", "a pipe"])
def test_a_path_that_became_another_s_is_an_error_and_leaves_nothing_open(what: str, tmp_path: Path) -> None:
    path = tmp_path / "path"
    if what == "an empty file":
        path.touch()
    if what == "a pipe":
        os.mkfifo(path)
    with pytest.raises(OSError):
        map_locked(str(path))
    assert not opened(under=str(tmp_path))

"""Control groups: where one may be had, what it bounds, and that none is left."""

import os
import signal
from pathlib import Path

import pytest

from actors.sandbox import control_group
from actors.sandbox.control_group import FILES, PREFIX, ControlGroup, NoControlGroup
from actors.sandbox.local import LocalSandbox
from actors.sandbox.program import Limits, Program

pytestmark = pytest.mark.unit

MIB = 1 << 20
V1, V2 = FILES["cgroup"], FILES["cgroup2"]


def groups_of(pid: int) -> list[Path]:
    """Those that a process holds."""
    held = {each.readlink() for each in Path(f"/proc/{pid}/fd").iterdir()}
    return [path for path in held if path.name.startswith(PREFIX)]


@pytest.fixture
def group() -> ControlGroup:
    found = control_group.make()
    if isinstance(found, NoControlGroup):
        pytest.skip("this machine lets this user make no control group that bounds memory")
    return found


def in_child(group: ControlGroup, size: int) -> int:
    """How a process ends that enters and holds so many bytes."""
    if not (child := os.fork()):
        try:
            group.enter()
            held = bytearray(size)
            held[::4096] = b"1" * len(held[::4096])
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_what_is_beyond_the_bound_is_killed_and_counted(group: ControlGroup) -> None:
    try:
        for most in (64, 256, 48):  # raised and lowered
            group.bound(most * MIB)
            before = group.killed()
            assert in_child(group, most // 2 * MIB) == 0
            assert group.killed() == before
            assert in_child(group, 2 * most * MIB) == -signal.SIGKILL
            assert group.killed() > before
    finally:
        group.close()
    assert not group.path.exists()


def test_a_group_of_who_was_killed_is_removed_by_the_next(group: ControlGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    name, tell = os.pipe()
    if not (child := os.fork()):
        killed = control_group.make()
        assert isinstance(killed, ControlGroup)
        os.write(tell, str(killed.path).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    left = Path(os.read(name, 4096).decode())
    try:
        control_group.make().close()
        assert left.exists()  # so new that its lock may be still to come
        monkeypatch.setattr(control_group, "NEW_S", 0.0)
        control_group.make().close()
        assert not left.exists()
        assert group.path.exists()  # locked
    finally:
        group.close()


def test_processes_that_allocate_together_end_a_program(group: ControlGroup, sandbox: LocalSandbox) -> None:
    group.close()
    each = "kept = bytearray(100 << 20)\nkept[::4096] = b'1' * len(kept[::4096])\ntime.sleep(9)"
    together = f"import os, time\nfor _ in range(6):\n    if not os.fork(): break\n{each}"
    outcome = sandbox.run(Program(together, limits=Limits(memory_mib=128)))
    assert outcome.ending == "memory"
    assert sandbox.run(Program("print(1)")).ending == "ended"
    assert sandbox._process is not None
    before = groups_of(sandbox._process.pid)
    assert len(before) == 1
    sandbox.close()
    assert not before[0].exists()


@pytest.mark.parametrize(
    ("mounts", "groups", "found"),
    [
        ("32 31 0:29 / {0}/memory rw - cgroup cgroup rw,memory", "4:memory:/a/b", [("memory/a/b", V1)]),
        ("32 31 0:29 /a {0}/memory rw - cgroup cgroup rw,memory,cpu", "4:cpu,memory:/a/b", [("memory/b", V1)]),
        ("32 31 0:29 /c {0}/memory rw - cgroup cgroup rw,memory", "4:memory:/a/b", []),
        ("32 31 0:29 / {0}/cpu rw - cgroup cgroup rw,cpu", "4:cpu:/a", []),
        ("32 31 0:29 / {0} rw shared:4 - cgroup2 cgroup2 rw,nsdelegate", "0::/a/b", [("a/b", V2), ("a", V2)]),
        ("32 31 0:29 / {0} rw - cgroup2 cgroup2 rw", "0::/", [(".", V2)]),
        ("32 31 0:29 / {0} rw - tmpfs tmpfs rw", "0::/", []),
    ],
)
def test_where_one_may_be_had(tmp_path: Path, mounts: str, groups: str, found: list) -> None:
    (tmp_path / "mountinfo").write_text(mounts.format(tmp_path) + "\n")
    (tmp_path / "cgroup").write_text(groups + "\n")
    assert list(control_group.places(tmp_path)) == [(tmp_path / place, files) for place, files in found]


def test_a_directory_that_is_no_control_group_is_none_of_ours(tmp_path: Path) -> None:
    for files in FILES.values():
        with pytest.raises(OSError):
            ControlGroup(tmp_path / "group", files)
        assert not (tmp_path / "group").exists()

"""A control group: the kernel's own bound on what all processes of a program hold together, where this process may make one."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "bvblend-program-"
NEW_S = 60.0
"""An unlocked directory that is not older may be about to be locked."""


@dataclass(frozen=True, slots=True)
class Files:
    """What version 1 and version 2 of control groups call the same things."""

    version: int
    memory: str
    """Bytes that all processes may hold, files in memory (`/tmp`) included."""
    swap: tuple[str, str | None]
    """What bounds swapped bytes, and the bound; None is that of the memory: version 1 counts both together."""
    events: str
    """Has a line `oom_kill N`."""


FILES = {
    "cgroup": Files(1, "memory.limit_in_bytes", ("memory.memsw.limit_in_bytes", None), "memory.oom_control"),
    "cgroup2": Files(2, "memory.max", ("memory.swap.max", "0"), "memory.events"),
}


class ControlGroup:
    """A directory that this process made, for one program after the other.

    Ended by: `close`, which removes it. Where this process is killed, an empty directory stays, without its lock, until another one is made beside it.
    """

    def __init__(self, path: Path, files: Files) -> None:
        """Raises OSError where this process may not have it."""
        self.path, self._files = path, files
        self._enter = self._lock = -1
        path.mkdir()
        try:
            # Process ids would not do: who looks may be in another process namespace.
            self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            # Opened here: what may be moved where is judged by who opened it.
            self._enter = os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            self.bound(1 << 30)
            if files.version == 2:
                (path / "memory.oom.group").write_text("1", encoding="utf-8")
        except OSError:
            self.close()
            raise

    @property
    def version(self) -> int:
        return self._files.version

    def bound(self, memory_bytes: int) -> None:
        """Programs from here on may hold so much. Beyond it the kernel kills."""
        name, most = self._files.swap
        limits = {self._files.memory: str(memory_bytes), name: most or str(memory_bytes)}
        # With swap counted in, the sum may never be below its part: as it was written before, or the other way round.
        for _ in range(2):
            for each, text in limits.items():
                with contextlib.suppress(OSError):
                    (self.path / each).write_text(text, encoding="utf-8")
        if int((self.path / self._files.memory).read_text(encoding="utf-8")) > memory_bytes:
            raise OSError(f"{self.path} takes no bound of {memory_bytes} bytes")

    def enter(self) -> None:
        """This process, and what it starts from here on. Raises OSError where the kernel refuses."""
        os.write(self._enter, b"0")

    def killed(self) -> int:
        """Processes that were killed for their memory so far."""
        lines = (self.path / self._files.events).read_text(encoding="utf-8").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

    def close(self) -> None:
        """All processes in it have ended."""
        for handle in (self._enter, self._lock):
            with contextlib.suppress(OSError):
                os.close(handle)
        self._enter = self._lock = -1
        with contextlib.suppress(OSError):
            self.path.rmdir()


class NoControlGroup:
    """Where the machine gives none: nothing is bounded, and nobody killed."""

    version = None

    def bound(self, memory_bytes: int) -> None: ...

    def enter(self) -> None: ...

    def killed(self) -> int:
        return 0

    def close(self) -> None: ...


def make() -> ControlGroup | NoControlGroup:
    """One that a process of ours can enter, if there is any."""
    for parent, files in places():
        _remove_left_over(parent)
        try:
            group = ControlGroup(parent / f"{PREFIX}{os.urandom(8).hex()}", files)
        except OSError:
            continue
        if _can_be_entered(group):
            return group
        group.close()
    return NoControlGroup()


def places(process: Path = Path("/proc/self")) -> Iterator[tuple[Path, Files]]:
    """Where the kernel may allow one: below the group of a process, and, since one of version 2 that has processes has no groups
    with bounds below it, beside it."""
    own = dict(_own_groups(process))
    for line in (process / "mountinfo").read_text(encoding="utf-8").splitlines():
        fields, _, behind = line.partition(" - ")
        root, mount_point = fields.split()[3:5]
        kind, _, options = behind.split()[:3]
        if kind not in FILES or not (kind == "cgroup2" or "memory" in options.split(",")):
            continue
        group = own.get("memory" if kind == "cgroup" else "")
        if group is None or not Path(group).is_relative_to(root):
            continue
        here = Path(mount_point) / Path(group).relative_to(root)
        yield here, FILES[kind]
        if kind == "cgroup2" and here != Path(mount_point):
            yield here.parent, FILES[kind]


def _own_groups(process: Path) -> Iterator[tuple[str, str]]:
    """The group of a process by what it bounds; that of version 2 by nothing."""
    for line in (process / "cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, group


def _can_be_entered(group: ControlGroup) -> bool:
    if not (child := os.fork()):
        try:
            group.enter()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _remove_left_over(parent: Path) -> None:
    """Groups of processes that were killed. One that somebody is in cannot be removed."""
    for left in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < time.time() - NEW_S and not _locked(left):
                left.rmdir()


def _locked(path: Path) -> bool:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False

"""What a program finds in its file system: Python and the libraries that it needs, read-only; five devices; one scratch directory.

There is no /proc, no /sys, no home, no /etc. The packages that are installed beside Python's own library are hidden.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from actors.sandbox import libc, namespaces

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_SLAVE = 1, 2, 4, 1 << 12, 1 << 14, 1 << 19
MNT_DETACH = 2
"""Of <sys/mount.h>."""
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
MOUNT_SETATTR = 442
"""The same on every architecture; Linux 5.12. The older way cannot make what is mounted below a mount read-only, too."""
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

SCRATCH = Path("/tmp")
PROGRAM = Path("/program.py")
OLD = Path("/old")
DEVICES = ("null", "zero", "full", "random", "urandom")
LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
FILES_PER_MIB = 16
"""How many files the scratch directory may hold for each MiB of its size."""


def build(source: bytes, scratch_mib: int) -> None:
    """Become a process of the new root, in a mount namespace of its own and in SCRATCH. source: the program, which is then at PROGRAM.

    All of it is in memory and in this mount namespace, and goes with the last process of that.
    """
    places = list(_read_only_places())
    libc.call("unshare", namespaces.CLONE_NEWNS)
    libc.call("mount", None, b"/", None, MS_REC | MS_SLAVE, None)
    _mount_memory(SCRATCH, f"mode=755,size={len(source) + (1 << 20)}")
    under = SCRATCH / OLD.name
    under.mkdir()
    libc.system_call("pivot_root", PIVOT_ROOT[os.uname().machine], bytes(SCRATCH), bytes(under))
    os.chdir("/")
    # Before the others: a Python may be installed under it.
    SCRATCH.mkdir()
    _mount_memory(SCRATCH, f"mode=1777,size={scratch_mib}m,nr_inodes={FILES_PER_MIB * scratch_mib}")
    for place in places:
        _show(place)
    for directory in _package_directories():
        _mount_memory(directory, "mode=555,size=4k", MS_RDONLY)
    for name in DEVICES:
        _bind(Path("/dev", name))
    Path("/dev/shm").symlink_to(SCRATCH)
    PROGRAM.write_bytes(source)
    libc.call("umount2", bytes(OLD), MNT_DETACH)
    OLD.rmdir()
    _make_read_only(Path("/"), recursive=False)
    os.chdir(SCRATCH)


def interpreter() -> str:
    """The Python that runs programs: the one of this process, without its virtual environment."""
    installed = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    return os.path.realpath(installed if installed.exists() else sys.executable)


def _read_only_places() -> Iterator[Path]:
    """Python's directories, the loader's, and those of the libraries that this process has loaded; none below another."""
    found = {Path(os.path.realpath(sys.base_prefix)), Path(interpreter()).parent, *map(Path, LIBRARIES)}
    with Path("/proc/self/maps").open() as maps:
        for line in maps:
            path = line.rstrip("\n").split(maxsplit=5)[5:]
            if path and path[0].startswith("/"):
                found.add(Path(path[0]).parent)
    shown: list[Path] = []
    for place in sorted(found, key=lambda place: len(place.parts)):
        if place.exists() and not any(place.is_relative_to(above) for above in shown):
            shown.append(place)
            yield place


def _package_directories() -> Iterator[Path]:
    for directory in (f"python{sys.version_info[0]}.{sys.version_info[1]}", "python3"):
        for packages in ("site-packages", "dist-packages"):
            path = Path(os.path.realpath(sys.base_prefix), "lib", directory, packages)
            if path.is_dir():
                yield path


def _show(path: Path) -> None:
    """A place of the machine, read-only; a link as a link."""
    before = OLD / path.relative_to("/")
    if before.is_symlink():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(before.readlink())
    else:
        _bind(path)
        _make_read_only(path, recursive=True)


def _bind(path: Path) -> None:
    before = OLD / path.relative_to("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    if before.is_dir():
        path.mkdir()
    else:
        path.touch()
    libc.call("mount", bytes(before), bytes(path), None, MS_BIND | MS_REC, None)


def _mount_memory(path: Path, options: str, flags: int = 0) -> None:
    libc.call("mount", b"tmpfs", bytes(path), b"tmpfs", MS_NOSUID | MS_NODEV | flags, options.encode())


def _make_read_only(path: Path, recursive: bool) -> None:
    # struct mount_attr: what is set, what is cleared, propagation, user namespace.
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
    how, size = AT_RECURSIVE if recursive else 0, ctypes.c_size_t(ctypes.sizeof(attributes))
    libc.system_call("mount_setattr", MOUNT_SETATTR, AT_FDCWD, bytes(path), how, attributes, size)

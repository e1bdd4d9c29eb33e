"""Namespaces: what a process can see and reach of the machine, and as whom."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from actors.sandbox import libc

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
"""Of <sched.h>."""
EVERYTHING = CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
"""Cgroups, host name, shared memory, processes and network. Users come apart from these; mounts belong to pid 1 alone, since the root that
it moves to becomes the root of everybody in its mount namespace."""

NOBODY = 65534
"""The user and group inside."""
CAP_SYS_ADMIN = 21
CAPABILITY_VERSION_3 = 0x20080522


def enter() -> bool:
    """Leave the machine's namespaces, all but that of mounts; the one of processes holds for the children of this process.

    Returns whether root is still root, with the machine's own user namespace: a mount may need root's right to walk to it
    (a Python under /root). Who is not root has a user namespace from here on, which gives the right to make the others.
    """
    if _is_privileged_root():
        libc.call("unshare", EVERYTHING)
        return True
    user, group = os.geteuid(), os.getegid()
    libc.call("unshare", EVERYTHING | CLONE_NEWUSER)
    with open_proc() as proc:
        _become_nobody_inside(proc, user, group)
    return False


def lower(still_root: bool, proc: int) -> None:
    """Give up all privileges, once everything is mounted, in a user namespace in which the kernel counts this sandbox's
    processes alone. proc: a handle of /proc, which may be out of sight by then."""
    if still_root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        libc.prctl(libc.PR_SET_DUMPABLE, 1)  # else /proc/self, with the maps, is root's
        libc.call("unshare", CLONE_NEWUSER)
        _become_nobody_inside(proc, NOBODY, NOBODY)
    _drop_capabilities()
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)


@contextlib.contextmanager
def open_proc() -> Iterator[int]:
    """A handle of /proc."""
    handle = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _become_nobody_inside(proc: int, user: int, group: int) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {user} 1"), ("gid_map", f"{NOBODY} {group} 1")):
        handle = os.open(f"self/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(handle, text.encode())
        finally:
            os.close(handle)


def _is_privileged_root() -> bool:
    """Root that may mount and may become nobody; in a container it often may neither."""
    with Path("/proc/self/status").open() as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    with Path("/proc/self/uid_map").open() as maps:
        ranges = [tuple(map(int, line.split())) for line in maps]
    has_nobody = any(first <= NOBODY < first + count for first, _, count in ranges)
    return os.geteuid() == 0 and bool(effective >> CAP_SYS_ADMIN & 1) and has_nobody


def _drop_capabilities() -> None:
    """Of every set but the bounding one, which no_new_privs makes meaningless: no file gives any back."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    libc.call("capset", header, (ctypes.c_uint32 * 6)())

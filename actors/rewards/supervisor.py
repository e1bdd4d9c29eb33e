"""What stands between a rollout actor and one verifier process, and lets nothing live on of what that started.

Usage: python -I -S supervisor.py NAMESPACE PIPE_HANDLE MEMORY [COMMAND...]. Runs the command, and ends as that ended; or ends it when stdin
is closed, which its parent's dying does, too, or when all that it started holds more than MEMORY bytes together, which is then said on
stdout. Either way it first kills every process below it, whatever session those moved to and whatever environment they have: where NAMESPACE
is 1, they are in a pid namespace, of which the kernel lets nobody escape.
Two processes, both small: this one, and below it the one that the orphans are given to (pid 1 of the namespace). The command is
not pid 1 itself: that one would not be ended by signals such as SIGALRM, SIGSEGV of its own making or SIGTERM.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""Of <sys/prctl.h>."""
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
"""Of <sched.h>."""
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_SLAVE = 2, 4, 8, 1 << 14, 1 << 19
"""Of <sys/mount.h>."""
LOOK_MS = 200
"""Between two looks at the memory, each of which takes some .1 ms a process: who allocates 10 GiB/s gets 2 GiB more than it may."""
PAGE = os.sysconf("SC_PAGE_SIZE")


def main(namespace: bool, handle: int, memory: int, command: Sequence[str]) -> NoReturn:
    """handle: of what only the command has; -1 for nothing.    memory: in bytes; 0 for any.
    No command: everything but that, to see whether it is allowed."""
    _system("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if namespace:
        _enter_namespace()
    told, tell = os.pipe()
    init = os.fork()
    if not init:
        os.close(told)
        _reap(tell, namespace, handle, command)
    os.close(tell)
    if handle >= 0:
        os.close(handle)
    waiting = select.poll()
    waiting.register(sys.stdin.fileno(), 0)  # its hanging up is always looked for
    waiting.register(told, select.POLLIN)
    while not waiting.poll(LOOK_MS if memory else None):
        if (held := memory_below(os.getpid(), memory)) > memory:
            os.write(sys.stdout.fileno(), b"held %d MiB with all that it started" % (held >> 20))
            break
    os.kill(init, signal.SIGKILL)
    # The kernel ends pid 1 of a namespace when all others in it have gone.
    status = os.waitpid(init, 0)[1]
    if not namespace:
        _kill_descendants()
    _end_as(int(os.read(told, 16) or status))


def memory_below(ancestor: int, enough: int = 0) -> int:
    """Bytes that the descendants of a process hold together. What several share counts once, which takes long to find out: only where it
    could be more than `enough`."""
    below = list(_listed_below(ancestor))
    resident = sum(map(_resident, below))
    return resident if resident <= enough else sum(map(_proportional, below))


def _resident(pid: int) -> int:
    try:
        return int(_read(f"/proc/{pid}/statm").split()[1]) * PAGE
    except OSError:
        return 0  # it has ended


def _proportional(pid: int) -> int:
    try:
        pss = next(line for line in _read(f"/proc/{pid}/smaps_rollup").splitlines() if line.startswith(b"Pss:"))
    except (OSError, StopIteration):  # not to be looked at, or ended
        return _resident(pid)
    return int(pss.split()[1]) << 10


def _reap(tell: int, namespace: bool, handle: int, command: Sequence[str]) -> NoReturn:
    """Start the command and wait for every orphan until it ends. tell: where its wait status goes."""
    _die_with_parent()
    hung_up = select.poll()
    hung_up.register(tell, 0)
    if hung_up.poll(0):
        os._exit(1)  # the parent had died before it could be told what its death means
    if namespace:
        _mount_own_proc()
    else:
        _system("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    reaper = os.getpid()
    if not (child := os.fork()):
        _run(reaper, command)
    if handle >= 0:
        os.close(handle)
    while (ended := os.wait())[0] != child:
        pass
    os.write(tell, b"%d" % ended[1])
    os._exit(0)


def _run(parent: int, command: Sequence[str]) -> NoReturn:
    _die_with_parent()
    if os.getppid() != parent or not command:
        os._exit(0)
    os.setsid()
    for standard in (0, 1):
        os.dup2(os.open(os.devnull, os.O_RDWR), standard)
    os.execv(command[0], list(command))


def _enter_namespace() -> None:
    """For the children of this process, not itself. A user other than root may where it has a user namespace of its own."""
    user, group = os.geteuid(), os.getegid()
    _system("unshare", CLONE_NEWPID | (CLONE_NEWUSER if user else 0))
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            os.write(os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC), text.encode())


def _mount_own_proc() -> None:
    """So that a process that looks itself up by its id finds itself, and nobody of outside."""
    _system("unshare", CLONE_NEWNS)
    _system("mount", None, b"/", None, MS_REC | MS_SLAVE, None)
    _system("mount", b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)


def _die_with_parent() -> None:
    # Of the thread that forked; there is only one here.
    _system("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _system(name: str, *arguments: int | bytes | None) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _kill_descendants() -> None:
    """All that is orphaned below is this process's child, until there is none: those that are not killed yet may start others."""
    with contextlib.suppress(ChildProcessError):  # there is none
        while True:
            for pid in _below(os.getpid()):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            os.wait()


def _below(ancestor: int) -> Iterator[int]:
    """All of them, among all processes there are."""
    children: dict[int, list[int]] = {}
    for name in [entry.name for entry in os.scandir("/proc") if entry.name.isdigit()]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # Behind the name, which may hold anything: state and parent.
            parent = int(_read(f"/proc/{name}/stat").rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    found = [ancestor]
    for each in found:
        found += children.get(each, ())
    yield from found[1:]


def _listed_below(ancestor: int) -> Iterator[int]:
    """Those that the kernel lists as children, which is quick, and may miss one while others end."""
    found = [ancestor]
    for each in found:
        with contextlib.suppress(OSError):  # it has ended
            for thread in os.listdir(f"/proc/{each}/task"):  # noqa: PTH208 - importing pathlib would double the start
                found += map(int, _read(f"/proc/{each}/task/{thread}/children").split())
    yield from found[1:]


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - as above
        return file.read()


def _end_as(status: int) -> NoReturn:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main(sys.argv[1] == "1", int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])

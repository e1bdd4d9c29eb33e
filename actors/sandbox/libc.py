"""System calls that Python 3.11 does not have. Each raises OSError with its name."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
"""Of <sys/prctl.h>."""

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> int:
    """A function of the C library by name."""
    result: int = getattr(_libc, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def system_call(name: str, number: int, *arguments: object) -> int:
    """One that the C library has no function for."""
    try:
        return call("syscall", ctypes.c_long(number), *arguments)
    except OSError as error:
        raise OSError(error.errno, f"{name}: {os.strerror(error.errno or 0)}") from None


def prctl(option: int, argument: int, pointer: object = None) -> None:
    """Something about this process."""
    call("prctl", option, ctypes.c_ulong(argument), pointer, None, None)


def die_with_parent() -> None:
    """SIGKILL when the parent ends. The kernel forgets it when credentials change, and does not tell of a parent that has ended."""
    prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))

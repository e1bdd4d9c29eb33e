"""A seccomp filter: the doors of the kernel that no program needs for a task's answer are shut.

What a namespace already makes useless is refused here again: holes of the kernel are found behind such calls. Numbers above
those that were known when this was written are refused as if the kernel did not have them.
"""

import ctypes
import errno
import os
from collections.abc import Iterator

from actors.sandbox import libc

AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
REFUSED = {
    # Looking into other processes, and taking their descriptors.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    # Mounts, roots and namespaces.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    # Parts of the kernel that are large, new, or privileged.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "acct": (163, 89),
    "syslog": (103, 116),
    "personality": (135, 92),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "vmsplice": (278, 75),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    # Memory that no limit of a process counts.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "mq_open": (240, 180),
}
"""Numbers on x86-64 and 64-bit ARM; None where there is no such call."""
CLONE, CLONE3, SOCKET = (56, 220), (435, 435), (41, 198)
LAST_KNOWN = 450
NEW_NAMESPACES = 0x7E020000
"""All CLONE_NEW* that `clone` takes."""
AF_UNIX = 1

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
"""BPF instructions, of <linux/bpf_common.h>."""
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in struct seccomp_data."""
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_FILTER = 2
"""SECCOMP_MODE_FILTER"""

Instruction = tuple[int, int, int, int]
"""Code, jump where true, jump where false, operand."""


def install() -> None:
    """For this process and all that it starts, for ever. Needs no_new_privs."""
    code = b"".join(_packed(*instruction) for instruction in filter_code(os.uname().machine))
    instructions = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(instructions, ctypes.c_void_p))
    libc.prctl(libc.PR_SET_SECCOMP, _FILTER, ctypes.byref(program))


def filter_code(machine: str) -> Iterator[Instruction]:
    """The filter for `x86_64` or `aarch64`."""
    column = list(AUDIT_ARCHITECTURE).index(machine)
    yield _LOAD, 0, 0, _ARCHITECTURE
    yield from _unless_equal(AUDIT_ARCHITECTURE[machine], _KILL)
    yield _LOAD, 0, 0, _NUMBER
    # Also those of x32, whose numbers begin at 2^30.
    yield _GREATER, 0, 1, LAST_KNOWN
    yield _RETURN, 0, 0, _ERRNO | errno.ENOSYS
    # Its flags lie in memory, where no filter looks; the C library goes on with `clone`.
    yield from _if_equal(CLONE3[column], _ERRNO | errno.ENOSYS)
    for numbers in REFUSED.values():
        if (number := numbers[column]) is not None:
            yield from _if_equal(number, _ERRNO | errno.EPERM)
    yield _EQUAL, 0, 4, CLONE[column]
    yield _LOAD, 0, 0, _FIRST_ARGUMENT
    yield _ANY_BIT, 0, 1, NEW_NAMESPACES
    yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    yield _RETURN, 0, 0, _ALLOW
    yield _EQUAL, 0, 3, SOCKET[column]
    yield _LOAD, 0, 0, _FIRST_ARGUMENT
    yield _EQUAL, 1, 0, AF_UNIX
    yield _RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT
    yield _RETURN, 0, 0, _ALLOW


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def _if_equal(value: int, action: int) -> Iterator[Instruction]:
    yield _EQUAL, 0, 1, value
    yield _RETURN, 0, 0, action


def _unless_equal(value: int, action: int) -> Iterator[Instruction]:
    yield _EQUAL, 1, 0, value
    yield _RETURN, 0, 0, action


def _packed(code: int, if_true: int, if_false: int, operand: int) -> bytes:
    return code.to_bytes(2, "little") + bytes((if_true, if_false)) + operand.to_bytes(4, "little")

"""Bounds that the kernel keeps for each process."""

import resource

from actors.sandbox.program import Limits

OTHERS = 2
"""Processes of ours that the kernel counts beside a program's own: pid 1, and the one outside that waits for it."""
SMALL = 1 << 16


def apply(limits: Limits, own_user_namespace: bool) -> None:
    """To this process and all that it will start, for good.

    own_user_namespace: without it the kernel would count the processes of the user on the whole machine, and they are not bounded.
    """
    bounds = {
        # A second later SIGKILL comes, for who ignores SIGXCPU.
        resource.RLIMIT_CPU: (limits.cpu_s, limits.cpu_s + 1),
        resource.RLIMIT_AS: (limits.memory_mib << 20,) * 2,
        resource.RLIMIT_NOFILE: (limits.open_files,) * 2,
        resource.RLIMIT_FSIZE: (limits.scratch_mib << 20,) * 2,
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MEMLOCK: (SMALL, SMALL),
        resource.RLIMIT_MSGQUEUE: (0, 0),
    }
    if own_user_namespace:
        bounds[resource.RLIMIT_NPROC] = (limits.processes + OTHERS,) * 2
    for kind, bound in bounds.items():
        own = resource.getrlimit(kind)[1]
        soft, hard = (value if own == resource.RLIM_INFINITY else min(value, own) for value in bound)
        resource.setrlimit(kind, (soft, hard))

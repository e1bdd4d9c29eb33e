"""`bvblend doctor`: whether this machine can carry a run."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.table import Table
from rich.text import Text

from actors.rewards.process import pid_namespace_allowed
from actors.sandbox.probe import probe
from deploy.cluster.address import named_address, ray_to_join
from deploy.cluster.environment import PackageCheck

DISK_GIB = 5.0
SHARED_MEMORY_GIB = 1.0
MEMORY_GIB = 4.0
CLOCK_S = 5.0
CONNECT_S = 20.0


@dataclass(frozen=True, slots=True)
class MachineCheck:
    """One row of the table: what was looked at, what was found, and what is wrong with it."""

    name: str
    found: str
    problem: str | None = None


def check_machine() -> list[MachineCheck]:
    """Disk, memory, clock, GPU and, where RAY_ADDRESS names one, the Ray cluster."""
    ray_files = Path(os.environ.get("RAY_TMPDIR", "/tmp"))
    checks = [
        _space("disk here", Path.cwd(), DISK_GIB, "checkpoints and the ledger need room"),
        _space("disk of Ray's files", ray_files, DISK_GIB, "Ray stops taking work on a full disk; free some, or set RAY_TMPDIR"),
        _memory(),
        _clock(),
        _gpus(),
        _verifiers(),
        programs(),
        _ray(),
    ]  # fmt: skip
    shared = Path("/dev/shm")
    if shared.is_dir():
        remedy = "Ray's objects go to a slow disk; in a container, give it --shm-size=4g"
        checks.insert(2, _space("shared memory", shared, SHARED_MEMORY_GIB, remedy))
    return checks


def packages_table(checks: Sequence[PackageCheck]) -> Table:
    """Every pinned package."""
    table = _table("packages", "package", "wanted", "found")
    for check in checks:
        table.add_row(check.name, check.wanted, check.found or "–", _verdict(check.problem, check.found is not None))
    return table


def machine_table(checks: Sequence[MachineCheck]) -> Table:
    """What `check_machine` found."""
    table = _table("machine", "what", "found")
    for check in checks:
        table.add_row(check.name, check.found, _verdict(check.problem, True))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_style="bold")
    for name in (*columns, ""):
        table.add_column(name, overflow="fold")
    return table


def _verdict(problem: str | None, needed: bool) -> Text:
    if problem is not None:
        return Text(problem, style="red")
    return Text("ok", style="green") if needed else Text("not needed", style="dim")


def _space(name: str, path: Path, least_gib: float, remedy: str) -> MachineCheck:
    free = shutil.disk_usage(path).free / 2**30
    problem = f"less than {least_gib:g} GiB: {remedy}" if free < least_gib else None
    return MachineCheck(name, f"{free:.1f} GiB free ({path})", problem)


def _memory() -> MachineCheck:
    free = psutil.virtual_memory().available / 2**30
    problem = f"less than {MEMORY_GIB:g} GiB: an engine and a learner do not fit" if free < MEMORY_GIB else None
    return MachineCheck("memory", f"{free:.1f} GiB free", problem)


def _clock() -> MachineCheck:
    """Against the clock that stamps files here, which on a network disk is another machine's."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    try:
        with tempfile.NamedTemporaryFile(dir=Path.cwd()) as file:
            skew = Path(file.name).stat().st_mtime - time.time()
    except OSError as error:
        return MachineCheck("clock", now, f"cannot write here: {error}")
    problem = f"files here are stamped {skew:+.0f} s off: set both clocks by NTP" if abs(skew) > CLOCK_S else None
    return MachineCheck("clock", now, problem)


def _gpus() -> MachineCheck:
    import torch

    if not torch.cuda.is_available():
        return MachineCheck("GPU", "none: everything runs on the CPU")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return MachineCheck("GPU", ", ".join(names))


def _verifiers() -> MachineCheck:
    if pid_namespace_allowed():
        return MachineCheck("verifiers", "a pid namespace for each: the kernel ends all that one started")
    return MachineCheck("verifiers", "no pid namespace allowed here: a supervisor ends all that one started")


def programs() -> MachineCheck:
    """No problem where they cannot be isolated: only the verifier `code` runs any, and refuses to."""
    found = probe()
    if found.missing is not None:
        return MachineCheck("sandbox", found.missing)
    how = (
        "looking at it: no control group may be made here"
        if found.control_groups is None
        else f"a control group (version {found.control_groups})"
    )
    return MachineCheck("sandbox", f"programs are isolated; memory of all their processes is bounded by {how}")


def _ray() -> MachineCheck:
    address = named_address(None)
    if address is None:
        return MachineCheck("Ray", "no RAY_ADDRESS: a run starts a Ray of its own")
    import ray

    try:
        ray.init(address=ray_to_join(None), log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        return MachineCheck("Ray", address, f"cannot be reached: {error}")
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        total = ray.cluster_resources()
        off = {node["NodeManagerAddress"]: skew for node in nodes if abs(skew := _skew(node["NodeID"])) > CLOCK_S}
    finally:
        ray.shutdown()
    found = f"{address}: {len(nodes)} nodes, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
    clocks = ", ".join(f"{node} {skew:+.0f} s" for node, skew in off.items())
    return MachineCheck("Ray", found, f"clocks are off ({clocks}): set them by NTP" if off else None)


def _skew(node: str) -> float:
    """Seconds that the clock of a Ray node is ahead of this one's, as far as an answer on its way can tell."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def clock() -> float:
        return time.time()

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    asked = time.time()
    answer: float = ray.get(
        ray.remote(clock).options(num_cpus=0, scheduling_strategy=there).remote(), timeout=CONNECT_S
    )
    return min(0.0, answer - asked) + max(0.0, answer - time.time())

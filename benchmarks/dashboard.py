"""What a page that follows a live run costs: CPU of the dashboard while a real Chromium shows a real training run.

usage: python -m benchmarks.dashboard --out benchmarks/results/dashboard.json [--recipe deploy/recipes/cold_start.yaml]

Only the dashboard's process counts: the browser is on the machine of whoever looks.
"""

import argparse
import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.async_api import async_playwright

from benchmarks.figures import Figure, cpu_seconds_of, figure, resident_bytes, write_figures
from deploy.rundir.layout import RunDirectory

ROOT = Path(__file__).parents[1]
VIEWS = ("run", "moments", "groups", "system")
FIRST_STEPS = 10
"""Of the run, which pass before a page opens."""
WATCHED_S = 20.0
"""How long each view is looked at."""
OPENING_S = 3.0
"""What a page asks for while it opens is not what following costs."""
MOST = 0.01


@contextmanager
def started(*arguments: str, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`bvblend` with these arguments, ended after the block."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", *arguments], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


async def measure(recipe: Path) -> list[Figure]:
    with tempfile.TemporaryDirectory() as scratch:
        runs, log = Path(scratch) / "runs", Path(scratch) / "dashboard.log"
        settings = ("--set", f"runs_dir={runs}", "--set", "steps=1000")
        with started("train", str(recipe), *settings, log=Path(scratch) / "train.log") as training:
            while steps_of(runs) < FIRST_STEPS:
                assert training.poll() is None, (Path(scratch) / "train.log").read_text(encoding="utf-8")
                await asyncio.sleep(1)
            with started("dashboard", str(runs), "--port", "0", log=log) as server:
                while not (found := re.search(r"http://\S+", log.read_text(encoding="utf-8"))):
                    assert server.poll() is None, log.read_text(encoding="utf-8")
                    await asyncio.sleep(0.1)
                return await watch(found[0], runs, server.pid)


async def watch(address: str, runs: Path, server: int) -> list[Figure]:
    """Look at every view for a while."""
    name = (runs / "latest").resolve().name
    figures = []
    shares = []
    async with async_playwright() as driver:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = await driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = await browser.new_page(viewport={"width": 1280, "height": 860})
        for view in VIEWS:
            await page.goto(f"{address}#/{view}?name={name}")
            await page.wait_for_selector("html[data-ready]")
            await asyncio.sleep(OPENING_S)
            steps, cpu, began = steps_of(runs), cpu_seconds_of(server), time.perf_counter()
            await asyncio.sleep(WATCHED_S)
            seconds, cpu = time.perf_counter() - began, cpu_seconds_of(server) - cpu
            figures.append(figure(f"dashboard, view {view}, CPU", 1e3 * cpu / (steps_of(runs) - steps), "ms/step"))
            shares.append(figure(f"dashboard, view {view}, CPU, share of a step", cpu / seconds, "1", target=MOST))
        await browser.close()
    return [
        *figures,
        *shares,
        figure("dashboard, resident memory", resident_bytes(server) / 2**20, "MiB", target=300.0),
    ]


def steps_of(runs: Path) -> int:
    latest = runs / "latest"
    rows = RunDirectory(latest).last_metrics(1) if latest.exists() else []
    return int(rows[-1]["step"]) + 1 if rows else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=ROOT / "deploy" / "recipes" / "cold_start.yaml")
    arguments = parser.parse_args()
    write_figures(arguments.out, asyncio.run(measure(arguments.recipe)))


if __name__ == "__main__":
    main()

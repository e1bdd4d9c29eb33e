"""How long a question about the samples of a large run takes, and what it costs a run to keep values of tokens.

usage: python -m benchmarks.samples --out benchmarks/results/samples.json [--samples 200000]
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.figures import Figure, figure, write_figures
from deploy.dashboard import sample_view
from deploy.rundir import token_file
from deploy.rundir.groups import Wanted
from deploy.rundir.open_run import OpenRun
from deploy.rundir.samples import SampleFilter
from learner.config import LearnerConfig
from learner.job import LearnerJob
from learner.rank import LearnerRank
from learner.token_values import TokenValues
from tests.made_runs import MadeRun
from tests.made_samples import made_group

GROUPS, SIZE = 125, 8
LONG = " ".join(f"and then {number} follows" for number in range(40))
NEEDLE = "what only one completion says"
MOST_S = 1.0
POLICY = str(Path(__file__).parents[1] / "deploy/recipes/cold_start/policy")
COMPLETION_TOKENS = 512
REPEATS = 5


async def made(runs: Path, samples: int) -> OpenRun:
    """A run whose completions are 900 characters long; the oldest of them says what no other does."""
    steps = samples // (GROUPS * SIZE)
    texts = {number: f"{LONG} {number}" for number in range(samples)} | {0: NEEDLE}
    run = await MadeRun(runs, "many", steps=steps, groups=GROUPS, size=SIZE, texts=texts).start()
    await (await run.steps(steps)).finish()
    return OpenRun(run.directory)


def seconds(ask: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def searches(run: OpenRun, newest: int) -> list[Figure]:
    """What the page and the command ask, to the end of what there is."""

    def whole(wanted: SampleFilter, valued: bool = False) -> int:
        before, looked_at, pages = None, 0, 0
        while True:
            found = sample_view.search(run, wanted, before, valued)
            msgspec.json.encode(found)
            before, looked_at, pages = found["next"], looked_at + found["looked_at"], pages + 1
            if before is None or found["groups"]:
                return looked_at

    questions = {
        "the newest page": (SampleFilter(), False),
        "one step": (SampleFilter(Wanted(step=newest // 2)), False),
        "one source, rewarded": (SampleFilter(Wanted(source="gcd"), lowest=1.0), False),
        "no reward (there is none)": (SampleFilter(failed=True), False),
        "cut by a limit (there is none)": (SampleFilter(truncated=True), False),
        "a length that none has": (SampleFilter(shortest=10**6), False),
        "values of tokens (one group, the oldest)": (SampleFilter(), True),
        "a text that the oldest alone has": (SampleFilter(text=NEEDLE), False),
    }
    found = []
    for name, (wanted, valued) in questions.items():
        found.append(figure(f"seconds, {name}", seconds(partial(whole, wanted, valued)), "s", target=MOST_S))
    return found


def keeping(scratch: Path) -> list[Figure]:
    """Bytes and seconds of one file: two groups of eight, 512 tokens a completion."""
    random = np.random.default_rng(0)

    def column() -> token_file.Floats:
        return random.normal(size=COMPLETION_TOKENS).astype(np.float32)

    ids = np.arange(COMPLETION_TOKENS, dtype=np.int32)
    values = [TokenValues(f"g{i // SIZE}", i % SIZE, ids, column(), column(), column()) for i in range(2 * SIZE)]
    texts = [[" word"] * COMPLETION_TOKENS for _ in values]
    taken = seconds(lambda: token_file.write(scratch, 0, 0, values, texts), 20)
    size = token_file.path_of(scratch, 0).stat().st_size
    return [
        figure("bytes of values a token", size / (2 * SIZE * COMPLETION_TOKENS), "B"),
        figure("bytes of values a step that keeps them", size, "B"),
        figure("seconds to write them", taken, "s"),
    ]


def asking() -> list[Figure]:
    """What the pass over two groups of 32 costs the learner, in a step that keeps them: both kinds in turn."""
    rank = LearnerRank(LearnerConfig(), LearnerJob(POLICY, 100), 0, world_size=1)
    rank.setup("127.0.0.1", 0, timeout_s=60.0)
    try:
        groups = [made_group(f"g{i}", 40, [60] * SIZE, vocabulary=60, seed=i) for i in range(32)]
        taken: dict[frozenset[str], list[float]] = {frozenset(): [], frozenset({"g3", "g7"}): []}
        for step in range(REPEATS):
            for keep, times in taken.items():
                times.append(seconds(partial(rank.step, [groups], step, keep), 1))
    finally:
        rank.close()
    plain, keeping = map(statistics.median, taken.values())
    return [figure("share of a learner's step that keeps them", keeping / plain - 1, "ratio", target=0.02)]


async def measure(samples: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as scratch:
        run = await made(Path(scratch), samples)
        group = sample_view.search(run, SampleFilter(Wanted(step=0)), None)["groups"][-1]["id"]
        one = np.zeros(1, dtype=np.float32)
        token_file.write(
            run.directory.tokens, 0, 0, [TokenValues(group, 0, one.astype(np.int32), one, one, one)], [["a"]]
        )
        newest = run.directory.last_metrics(1)[0]["step"]
        return searches(run, newest) + keeping(Path(scratch) / "kept") + asking()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=200_000)
    arguments = parser.parse_args()
    write_figures(arguments.out, asyncio.run(measure(arguments.samples)), samples=arguments.samples)

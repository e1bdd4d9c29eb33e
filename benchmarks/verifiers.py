"""How many sandboxes start, and how many completions each verifier judges, in a second of one core.

usage: python -m benchmarks.verifiers [--out benchmarks/results/verifiers.json] [--repeats 100]

Sandboxes: by the clock, one after the other, and by the CPU time that all their processes take. Verifiers: in this process, without the pool, so
that what is measured is the judging; sandboxes and other processes that they start count.
"""

import argparse
import asyncio
import json
import resource
import time
from pathlib import Path
from statistics import median

from actors.prompts.prompt import Prompt
from actors.rewards.protocol import Attempt, FunctionVerifier
from actors.sandbox.kinds import NamespaceSandbox, NoSandbox
from actors.sandbox.program import Program
from actors.verifiers import get_verifier
from benchmarks.figures import Figure, figure, write_figures

ADD = "```python\ndef add(a, b):\n    return a + b\n```"
VERIFIERS = {
    "numeric": ("numeric", "72", "Half of 144 is \\boxed{72}."),
    "exact": ("exact", "Paris", "**Paris**."),
    "choice": ("choice", "B", "The answer is (B)."),
    "math": ("math", "\\frac{3\\sqrt{2}}{2}", "So it is \\boxed{\\frac{3}{\\sqrt{2}}}."),
    "regex": ('{"kind":"regex","pattern":"<answer>(?P<answer>.*?)</answer>"}', "7", "So <answer>7</answer>"),
    "json_schema": ('{"kind":"json_schema","form":{"type":"object"}}', "-", '{"a": 1}'),
    "code, three unit tests": ("code", "assert add(1, 2) == 3\nassert add(0, 0) == 0\nassert add(-1, 1) == 0", ADD),
    "code, three runs": (
        "code",
        json.dumps({"inputs": ["1", "2", "3"], "outputs": ["1", "2", "3"]}),
        "```python\nprint(input())\n```",
    ),
}
"""By what they are called here: the verifier, a gold answer, and a completion that is right."""


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def sandbox_starts(repeats: int) -> list[Figure]:
    """The zygote is closed within what is counted, as its children's time is known then."""
    figures = []
    for kind in (NamespaceSandbox(), NoSandbox()):
        sandbox = kind.open()
        sandbox.run(Program("pass"))
        before, clock = _cpu_seconds(), []
        for _ in range(repeats):
            started = time.perf_counter()
            sandbox.run(Program("pass"))
            clock.append(time.perf_counter() - started)
        sandbox.close()
        cpu = (_cpu_seconds() - before) / repeats
        goal = 0.05 if isinstance(kind, NamespaceSandbox) else None
        figures.append(figure(f"sandbox {kind.kind}: one program, by the clock", median(clock), "s", target=goal))
        figures.append(figure(f"sandbox {kind.kind}: programs a core", 1 / cpu, "1/s", better="higher"))
    return figures


def verifications(repeats: int) -> list[Figure]:
    """Each verifier about a completion that is right."""
    figures = []
    for name, (spec, gold, completion) in VERIFIERS.items():
        verifier = get_verifier(spec)
        assert isinstance(verifier, FunctionVerifier)
        prompt, attempt = Prompt("id", "source", "text", gold, spec), Attempt(completion)
        clock = median(asyncio.run(_judged(verifier, prompt, attempt, repeats)))
        figures.append(figure(f"verifier {name}: verifications, by the clock", 1 / clock, "1/s", better="higher"))
    return figures


async def _judged(verifier: FunctionVerifier, prompt: Prompt, attempt: Attempt, repeats: int) -> list[float]:
    """Seconds of each judgement by the clock, the loop's start left out."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        verdict = await verifier.judge_one(prompt, attempt)
        seconds.append(time.perf_counter() - started)
        assert verdict.reward == 1.0, verdict
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/verifiers.json"))
    parser.add_argument("--repeats", type=int, default=100)
    arguments = parser.parse_args()
    figures = sandbox_starts(arguments.repeats) + verifications(arguments.repeats)
    write_figures(arguments.out, figures, repeats=arguments.repeats)


if __name__ == "__main__":
    main()

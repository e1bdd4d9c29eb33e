"""How many sandboxes start, and how many completions each verifier judges, in a second of one core.

usage: python -m benchmarks.verifiers [--out benchmarks/results/verifiers.json] [--repeats 100]

Sandboxes: by the clock, one after the other, and by the CPU time that all their processes take. Verifiers: in this process, without the pool, so
that what is measured is the judging; sandboxes and other processes that they start count.
"""

import argparse
import asyncio
import json
import re
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from reasoning_gym.factory import create_dataset

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
    "weighted, numeric and regex": (
        '{"kind":"weighted","of":{"right":{"verifier":"numeric","weight":0.5},"form":{"verifier":'
        '"{\\"kind\\":\\"regex\\",\\"pattern\\":\\"boxed.(?P<answer>[0-9]+)\\"}","weight":0.5}}}',
        "72",
        "Half of 144 is \\boxed{72}.",
    ),
    "code, three unit tests": ("code", "assert add(1, 2) == 3\nassert add(0, 0) == 0\nassert add(-1, 1) == 0", ADD),
    "code, three runs": (
        "code",
        json.dumps({"inputs": ["1", "2", "3"], "outputs": ["1", "2", "3"]}),
        "```python\nprint(input())\n```",
    ),
}
"""By what they are called here: the verifier, a gold answer, and a completion that is right."""


Case = tuple[str, str | None, str, dict[str, Any]]
"""A verifier, a gold answer, a completion that is right, and the prompt's material."""


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
    """Each verifier about a completion that is right. Services are on loopback and answer at once: what is left is this side's work."""
    figures = []
    with answering() as url:
        cases: dict[str, Case] = {
            name: (spec, gold, completion, {}) for name, (spec, gold, completion) in VERIFIERS.items()
        }
        for name, (spec, gold, completion, material) in (cases | _tasks() | _services(url)).items():
            figures.append(
                _verifications(name, Prompt("id", "source", "text", gold, spec, material), completion, repeats)
            )
    return figures


def _tasks() -> dict[str, Case]:
    """A task of reasoning-gym, whose scorer wants the whole entry."""
    params = {"seed": 0, "size": 1}
    entry = create_dataset("gcd", **params)[0]
    return {
        "reasoning_gym, gcd": (
            "reasoning_gym",
            None,
            entry["answer"],
            {"task": "gcd", "params": params, "entry": entry},
        )
    }


def _services(url: str) -> dict[str, Case]:
    judge = {
        "kind": "judge",
        "url": url,
        "model": "any",
        "rubric": {"right": {"asks": "Is it right?"}},
        "structured": False,
    }
    return {
        "http": (json.dumps({"kind": "http", "url": f"{url}/http"}), "4", "It is 4.", {}),
        "judge": (json.dumps(judge), "4", "It is 4.", {}),
    }


@contextmanager
def answering() -> Iterator[str]:
    """A service on loopback, a thread of this process, that finds every completion right."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Right) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Right(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the body waits 40 ms for the acknowledgement of the headers

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = 1.0 if self.path == "/http" else _verdict(asked["messages"][0]["content"])
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


def _verdict(instructions: str) -> dict[str, Any]:
    found = re.search("bear the id ([0-9a-f]+) ", instructions)
    assert found is not None
    content = json.dumps({"id": found[1], "reason": "It is.", "scores": {"right": 10}})
    return {"choices": [{"message": {"content": content}}], "usage": {"total_tokens": 100}}


def _verifications(name: str, prompt: Prompt, completion: str, repeats: int) -> Figure:
    verifier = get_verifier(prompt.verifier)
    assert isinstance(verifier, FunctionVerifier)
    clock = median(asyncio.run(_judged(verifier, prompt, Attempt(completion), repeats)))
    return figure(f"verifier {name}: verifications, by the clock", 1 / clock, "1/s", better="higher")


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

"""Sides of a benchmark that take turns: each a process of its own that does one step whenever it is told to.

What the machine does meanwhile falls on all of them alike. A side iterates over `turns()`; who compares them holds a `Side` of each.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self


def turns() -> Iterator[None]:
    """In a side, once: an item for every step that is asked for. What happens until the next item is asked for is measured.

    From the call on, whatever the process prints goes to standard error. Ends when the other end closes.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    answer: dict[str, Any] = {"ready": True}
    while True:
        print(json.dumps(answer), file=answers, flush=True)
        if not sys.stdin.readline():
            return
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        answer = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


class Side:
    """A process that answers to `step`. Raises RuntimeError, with the end of its log, where it has ended."""

    def __init__(self, name: str, command: Sequence[str], log: Path, threads: int, **environment: str) -> None:
        """threads: of its products."""
        self.name = name
        self.log = log
        wanted: Mapping[str, str] = {**os.environ, "OMP_NUM_THREADS": str(threads), **environment}
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8", env=wanted
            )
        self._answer()

    def step(self) -> dict[str, float]:
        """{"wall_s": seconds, "cpu_s": CPU seconds of all its threads} of one step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            end = self.log.read_text(encoding="utf-8")[-2000:]
            raise RuntimeError(f"{self.name} ended with {code}; its log ends with:\n{end}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

"""The verifier `code`: the completion's program passes the tests of the prompt, in a sandbox."""

import asyncio
import json
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from actors.prompts.prompt import Prompt
from actors.rewards.protocol import Attempt, FunctionVerifier, Verdict, reason
from actors.sandbox.examination import source
from actors.sandbox.kinds import AnySandbox
from actors.sandbox.program import Limits, Program, Sandbox, SandboxError
from actors.verifiers.code_tests import Cases, UnitTests, gold_tests, program_in, same_output
from actors.verifiers.gold import gold_answer

EXAMINATION = source()
NONCE_BYTES = 16


@dataclass(frozen=True, slots=True)
class _Result:
    passed: int
    of: int
    ended: str = ""
    """How the last program ended, where not by itself."""


def code(
    sandbox: str | dict[str, Any] = "namespaces", reward: str = "all", seconds: float = 6.0, memory_mib: int = 512
) -> FunctionVerifier:
    """Opens the sandbox and runs a program of one line in it. Raises SandboxRefusedError where this machine has none.

    reward: `all`, 1 if all tests pass and 0 otherwise; `share`, the share that passes.    seconds: for all tests of a completion together.
    """
    options = TypeAdapter(AnySandbox).validate_python(sandbox)
    opened: Sandbox = options.open()
    opened.run(Program("pass"))
    limits = Limits(wall_s=seconds, cpu_s=int(seconds) + 1, memory_mib=memory_mib)
    return CodeVerifier(opened, reward == "share", limits, getattr(options, "concurrent", 0))


def refuse_gold_without_tests(gold: str, **_: Any) -> None:
    """Raise ValueError for what holds no tests."""
    gold_tests(gold)


class CodeVerifier(FunctionVerifier):
    """Judges what the tests say of a program; that is worked out in processes that the program has no part in."""

    def __init__(self, sandbox: Sandbox, share: bool, limits: Limits, concurrent: int = 0) -> None:
        """concurrent: how many completions it may judge at once; 0 where the sandbox is this machine's, which they would share."""
        self._sandbox, self._share, self._limits = sandbox, share, limits
        self.waits, self.concurrent = concurrent > 0, concurrent or None
        self._threads = ThreadPoolExecutor(concurrent) if concurrent else None

    async def judge_one(self, prompt: Prompt, attempt: Attempt) -> Verdict:
        if self._threads is None:
            return self._judged(prompt, attempt)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._judged, prompt, attempt)

    def _judged(self, prompt: Prompt, attempt: Attempt) -> Verdict:
        """An error of the sandbox is one of the verdict; whatever the program does is not."""
        started = time.perf_counter()
        try:
            tests = gold_tests(gold_answer(prompt))
            program = program_in(attempt.text)
            result = self._examined(program, tests) if isinstance(tests, UnitTests) else self._run(program, tests)
        except (SandboxError, ValueError) as error:
            return Verdict(None, reason(error), seconds=time.perf_counter() - started)
        share = result.passed / result.of
        note = f"{result.passed} of {result.of} tests" + (f", {result.ended}" if result.ended else "")
        reward = share if self._share else float(result.passed == result.of)
        return Verdict(reward, seconds=time.perf_counter() - started, note=note)

    def _examined(self, program: str, tests: UnitTests) -> _Result:
        nonce = secrets.token_hex(NONCE_BYTES)
        asked = {"nonce": nonce, "program": program, "names": tests.names, "steps": tests.steps}
        outcome = self._sandbox.run(Program(EXAMINATION, json.dumps(asked), self._limits))
        said = list(_said(outcome.stdout, nonce))
        if said[:1] != [("ready",)]:
            raise SandboxError(f"the examiner of the tests did not start: {outcome.stderr[-200:]}")
        passed = {line[0] for line in said if line[1:] == ("1",)}
        return _Result(len(passed), tests.count, _ending(outcome.ending))

    def _run(self, program: str, cases: Cases) -> _Result:
        passed, ended = 0, ""
        deadline = time.monotonic() + self._limits.wall_s
        for case in cases.cases:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            outcome = self._sandbox.run(Program(program, case.stdin, replace(self._limits, wall_s=left)))
            well = outcome.ending == "ended" and outcome.code == 0 and same_output(outcome.stdout, case.stdout)
            passed, ended = passed + well, _ending(outcome.ending) or ended
            if not well and not self._share:
                break
        return _Result(passed, len(cases.cases), ended)


def _said(stdout: str, nonce: str) -> Iterator[tuple[str, ...]]:
    for line in stdout.splitlines():
        first, *rest = line.split() or [""]
        if secrets.compare_digest(first.encode(), nonce.encode()):
            yield tuple(rest)


def _ending(ending: str) -> str:
    return "" if ending == "ended" else ending.replace("_", " ")

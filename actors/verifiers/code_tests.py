"""The tests of a prompt of code, and the program of a completion."""

import ast
import builtins
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

FENCE = "```"
KEYS = ("tests", "setup", "entry_point", "cases", "inputs", "outputs")


@dataclass(frozen=True, slots=True)
class UnitTests:
    """Python that calls the program's functions."""

    names: list[str]
    """What it may need of the program."""
    steps: list[dict[str, Any]]
    """In order: `source`, and whether it is a `test` or what the tests after it need."""

    @property
    def count(self) -> int:
        return sum(step["test"] for step in self.steps)


@dataclass(frozen=True, slots=True)
class Case:
    """What the program reads, and what it must write."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class Cases:
    """Runs of the whole program."""

    cases: tuple[Case, ...]


def gold_tests(gold: str) -> UnitTests | Cases:
    """The tests that a gold answer holds: Python with assertions; or JSON of a list of such, or of `tests`, `setup` and `entry_point`,
    or of `cases` with `stdin` and `stdout`, or of `inputs` and `outputs`. Raises ValueError."""
    found = _read(gold)
    try:
        if "cases" in found:
            return _cases((case["stdin"], case["stdout"]) for case in found["cases"])
        if "inputs" in found:
            return _cases(zip(found["inputs"], found["outputs"], strict=True))
        return _unit_tests(found["tests"], found.get("setup", ""), found.get("entry_point", ""))
    except SyntaxError as error:
        raise ValueError(f"the tests are no Python: {error}") from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"the tests are not complete: {type(error).__name__}: {error}") from None


def program_in(completion: str) -> str:
    """The last block that is fenced with ```. With one fence only, what is behind it where it opens a block (it names a language), else
    what is before it, as the prompt may end with an open one. Without any, all of it."""
    lines = completion.splitlines(keepends=True)
    fences = [place for place, line in enumerate(lines) if line.lstrip().startswith(FENCE)]
    if len(fences) > 1:
        last = len(fences) // 2 * 2
        return "".join(lines[fences[last - 2] + 1 : fences[last - 1]])
    if not fences:
        return completion
    names_language = bool(lines[fences[0]].strip().removeprefix(FENCE))
    before = "" if names_language else "".join(lines[: fences[0]]).strip("\n")
    return before or "".join(lines[fences[0] + 1 :])


def same_output(written: str, wanted: str) -> bool:
    """Whether two texts are the same but for white space at the ends of lines and of the whole."""
    return [line.rstrip() for line in written.rstrip().splitlines()] == [
        line.rstrip() for line in wanted.rstrip().splitlines()
    ]


def _read(gold: str) -> dict[str, Any]:
    if gold.lstrip()[:1] not in ("{", "["):
        return {"tests": gold}
    try:
        found = json.loads(gold)
    except json.JSONDecodeError as error:
        raise ValueError(f"the tests are no JSON: {error}") from None
    found = {"tests": found} if isinstance(found, list) else found
    if unknown := found.keys() - set(KEYS):
        raise ValueError(f"tests have no {', '.join(map(repr, sorted(unknown)))}; there are {', '.join(KEYS)}")
    return found


def _unit_tests(tests: str | list[str], setup: str, entry_point: str) -> UnitTests:
    texts = [tests] if isinstance(tests, str) else tests
    steps = [_step(setup, test=False)] if setup else []
    for text in texts:
        steps += _steps(text, entry_point, whole=len(texts) > 1)
    found = UnitTests(_names("\n".join(step["source"] for step in steps), entry_point), steps)
    if not found.count:
        raise ValueError("there is no assertion in the tests, so that every program would pass")
    return found


def _cases(pairs: Any) -> Cases:
    cases = tuple(Case(*pair) for pair in pairs)
    if not cases or not all(isinstance(text, str) for case in cases for text in (case.stdin, case.stdout)):
        raise ValueError("each case has a text for stdin and one for stdout, and there is at least one")
    return Cases(cases)


def _step(source: str, test: bool) -> dict[str, Any]:
    ast.parse(source)
    return {"source": source, "test": test}


def _steps(text: str, entry_point: str, whole: bool) -> Iterator[dict[str, Any]]:
    """whole: one of several tests, that passes or does not; else each statement that asserts something is one."""
    statements = ast.parse(text).body
    called = list(_calls_of(statements, entry_point))
    if whole:
        yield _step("\n".join([text, *called]), test=True)
        return
    for statement in statements:
        yield _step(ast.unparse(statement), test=_asserts(statement))
    for call in called:
        yield _step(call, test=True)


def _asserts(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return False
    return any(isinstance(node, ast.Assert) for node in ast.walk(statement))


def _calls_of(statements: list[ast.stmt], entry_point: str) -> Iterator[str]:
    """Of the functions `test…()`, and of HumanEval's `check(candidate)`, which nothing else here calls."""
    for statement in statements:
        if isinstance(statement, ast.FunctionDef):
            needed = len(statement.args.args)
            if statement.name.startswith("test") and not needed:
                yield f"{statement.name}()"
            if statement.name == "check" and needed == 1 and entry_point:
                yield f"check({entry_point})"


def _names(source: str, entry_point: str) -> list[str]:
    """Names that the tests read and do not make. A program that redefines `len` or `sorted` does not redefine it for its tests."""
    tree = ast.parse(source)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    read = {node.id for node in nodes if isinstance(node.ctx, ast.Load)}
    return sorted((read - set(dir(builtins))) | ({entry_point} if entry_point else set()))

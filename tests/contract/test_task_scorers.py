"""The scorers of reasoning-gym: none that is accepted pays for empty, foreign or hostile text, or fails on it."""

import os
import resource
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from actors.prompts.prompt import Prompt
from actors.verifiers.mended_scorers import MENDED, WRONG_FORMS
from actors.verifiers.reasoning_gym import EVALUATING_TASKS, MIXTURE, task_score

pytestmark = pytest.mark.contract

PROBES = [
    *("", " ", "x", ".", ",", "nan", "NaN", "nan + nani", "inf", "-Infinity", "0", "-0", "0.0", "1", "-1", "1e400", "1e99999999", "10**10"),
    *("1/0", "0x10", "١", "1 2 3", "1 + 1", "yes", "no", "true", "False", "None", "null", "A B", "I do not know.", "move 1 1"),
    *("[]", "{}", "()", "[[]]", "[[], []]", "[NaN]", "[[1e999]]", "[null]", "[true]", '{"0": null}', '{"a": 1}', "''", '""'),
    *("<answer></answer>", "\x00", "\ud800", "😀", "a\nb", "1\n2", "__import__('os')"),
    *("9" * 100_000, "a" * 100_000, "[" * 100_000, "(" * 100_000, '{"a":' * 20_000, "1 " * 50_000, "1," * 50_000, "2 × " * 20_000 + "2"),
]  # fmt: skip
LIMIT_S = 30
"""CPU seconds for all probes of a task."""


def entries(task: str) -> Iterator[Prompt]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        from reasoning_gym.factory import create_dataset
    dataset = create_dataset(task, seed=5, size=2)
    for index in range(2):
        entry: dict[str, Any] = dataset[index]
        answer = None if entry["answer"] is None else str(entry["answer"])
        yield Prompt(
            "p", "s", "?", answer, "reasoning_gym", material={"task": task, "params": {"size": 2}, "entry": entry}
        )


def faults(task: str) -> list[str]:
    """What is wrong with the scorer of a task."""
    found = []
    for prompt in entries(task):
        gold = (prompt.answer or "").strip()
        if gold and task_score(prompt, gold) != 1.0:
            found.append(f"no full score for its own answer {gold[:40]!r}")
        for probe in PROBES:
            if probe.strip().casefold() == gold.casefold():
                continue
            try:
                score = task_score(prompt, probe)
            except Exception as error:
                found.append(f"{probe[:20]!r} raises {error!r:.80}")
            else:
                if score != 0.0:
                    found.append(f"{probe[:20]!r} is paid {score} where {gold[:40]!r} is right")
    return found


def accepted() -> list[str]:
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - EVALUATING_TASKS - {MIXTURE})


@pytest.mark.parametrize("task", sorted({*MENDED, *WRONG_FORMS}))
def test_what_was_mended_is_right(task: str) -> None:
    assert not faults(task)


@pytest.mark.long
@pytest.mark.parametrize("task", accepted())
def test_no_accepted_scorer_pays_for_anything(task: str) -> None:
    """In a process of its own, with a limit on its CPU time: what a probe makes a scorer work out may not end."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
        try:
            os.write(write, "\n".join(faults(task)).encode("utf-8", "replace")[:4000])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as said:
        found = said.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"took longer than {LIMIT_S} s"
    assert not found

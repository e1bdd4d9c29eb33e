"""Ten thousand hostile completions before every verifier, in the pool as a run has it: nothing stalls, leaks, or has a reward by fault."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import TypeAdapter
from reasoning_gym.factory import create_dataset

from actors.config import RewardsConfig
from actors.prompts.prompt import Prompt
from actors.rewards.pool import RewardPool
from actors.rewards.protocol import Attempt, Verdict
from actors.verifiers.options import AnyVerifier, spec
from tests.asked_service import Service, served
from tests.hostile_completions import made
from tests.unit.test_asked_services import graded

pytestmark = pytest.mark.contract

GOLD = "7919"
GROUP = 25
TASKS = ("chain_sum", "complex_arithmetic", "game_of_life_halting", "coin_flip", "prime_factorization", "word_ladder")
WITH_OPTIONS = (
    {"kind": "choice", "labels": ["6007", GOLD, "8009"]},
    {"kind": "regex", "pattern": "<answer>(?P<answer>.*?)</answer>"},
    {"kind": "json_schema", "form": {"type": "object", "required": [GOLD]}},
    {"kind": "weighted", "of": {"right": {"verifier": "exact"}, "formula": {"verifier": "math", "weight": 0.5}}},
)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with served() as service:
        service.otherwise = graded(score=0)
        yield service


def asked_of(service: Service) -> dict[str, Prompt]:
    """A prompt for each verifier of answers, by what it is called here."""
    specs = {"numeric": "numeric", "exact": "exact", "math": "math"}
    judge = {"kind": "judge", "url": service.url, "model": "any", "rubric": "?"}
    for each in (*WITH_OPTIONS, judge):
        specs[str(each["kind"])] = spec(TypeAdapter[Any](AnyVerifier).validate_python(each))
    found = {name: Prompt(name, "s", "?", GOLD, text) for name, text in specs.items()}
    for task in TASKS:
        entry = create_dataset(task, size=1, seed=3)[0]
        found[task] = Prompt(task, "s", "?", None, "reasoning_gym", material={"task": task, "entry": entry})
    return found


async def judged(prompts: dict[str, Prompt], texts: list[str]) -> dict[str, list[Verdict]]:
    """All of them by each verifier, one verifier after the other in one pool, as groups that come at once."""
    pool, found = RewardPool(RewardsConfig(timeout_s=20.0, processes=1)), {}
    try:
        for name, prompt in prompts.items():
            groups = [texts[start : start + GROUP] for start in range(0, len(texts), GROUP)]
            judging = (pool.judge(prompt, [Attempt(text, i) for i, text in enumerate(group)]) for group in groups)
            found[name] = [verdict for group in await asyncio.gather(*judging) for verdict in group]
        return found
    finally:
        await pool.close()


def unpaid(name: str, texts: list[str], verdicts: list[Verdict], errors: float) -> None:
    """errors: the largest share of completions that may be left without a verdict."""
    paid = [(text[:200], verdict) for text, verdict in zip(texts, verdicts, strict=True) if verdict.reward]
    assert not paid, (name, paid[:3])
    failed = Counter(verdict.error for verdict in verdicts if verdict.error is not None)
    assert failed.total() <= errors * len(verdicts), (name, failed.most_common(5))


@pytest.mark.parametrize("count", [pytest.param(10_000, marks=pytest.mark.long), 60])
def test_no_completion_is_paid_by_fault(
    count: int, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = len(list(Path("/proc/self/fd").iterdir()))
    texts = list(made(count, GOLD))
    for name, verdicts in asyncio.run(judged(asked_of(service), texts)).items():
        unpaid(name, texts, verdicts, errors=0.01)
    assert not list(tmp_path.iterdir())
    assert not [
        child for child in psutil.Process().children(recursive=True) if "actors.rewards" in " ".join(child.cmdline())
    ]
    assert len(list(Path("/proc/self/fd").iterdir())) <= files + 8  # the service's connections


@pytest.mark.parametrize("count", [pytest.param(1_000, marks=pytest.mark.long), 12])
def test_no_program_is_paid_by_fault(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tests = Prompt(
        "code", "s", "?", f"assert f(1) == {GOLD}\nassert f([2]) == [{GOLD}]", '{"kind":"code","seconds":2.0}'
    )
    texts = list(made(count, GOLD))
    unpaid("code", texts, asyncio.run(judged({"code": tests}, texts))["code"], errors=0.0)
    assert not list(tmp_path.iterdir())

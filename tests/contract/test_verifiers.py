"""What every verifier of answers keeps to: hand-checked pairs are judged as they are, hostile text is never paid, nothing is evaluated."""

import asyncio
import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from actors.prompts.prompt import Prompt
from actors.rewards.protocol import Attempt, Verdict
from actors.verifiers import get_verifier, refuse_gold
from actors.verifiers.numbers import read_number
from tests.hostile_completions import HOSTILE

pytestmark = pytest.mark.contract

DATA = Path(__file__).parents[1] / "data"
PAIRS = [json.loads(line) for line in (DATA / "answer_pairs.jsonl").read_text().splitlines()]
"""`verifier`, `gold`, `answer`, whether it is `right`, and the `reason` why the pair is there."""
GOLDS = {"numeric": "12", "exact": "blue", "choice": "B", "math": r"\frac{1}{2}"}


def judged(verifier: str, gold: str, *texts: str) -> list[Verdict]:
    attempts = [Attempt(text, place) for place, text in enumerate(texts)]
    return list(asyncio.run(get_verifier(verifier).judge(Prompt("p", "s", "?", gold, verifier), attempts)))


@pytest.mark.parametrize("reason", sorted({pair["reason"] for pair in PAIRS}))
def test_pairs_are_judged_as_people_judge_them(reason: str) -> None:
    pairs = [pair for pair in PAIRS if pair["reason"] == reason]
    wrong = [
        (pair["verifier"], pair["gold"], pair["answer"], verdict)
        for pair in pairs
        for verdict in judged(pair["verifier"], pair["gold"], pair["answer"])
        if verdict.reward != float(pair["right"])
    ]
    assert not wrong


def test_there_are_many_pairs_each_of_them_once_and_of_both_kinds() -> None:
    counted = Counter((pair["verifier"], pair["gold"], pair["answer"]) for pair in PAIRS)
    assert len(counted) == len(PAIRS) >= 300
    for verifier, gold in {(pair["verifier"], pair["gold"]) for pair in PAIRS}:
        refuse_gold(verifier, gold)
        assert {pair["right"] for pair in PAIRS if (pair["verifier"], pair["gold"]) == (verifier, gold)} == {
            True,
            False,
        }


def test_every_gold_answer_of_gsm8k_is_read_and_recognised() -> None:
    """All distinct ones of its 8,792."""
    golds = (DATA / "gsm8k_golds.txt").read_text().splitlines()
    assert len(golds) == 983
    for gold in golds:
        refuse_gold("numeric", gold)
        number = read_number(gold)
        assert number is not None and number == int(gold.replace(",", ""))
        texts = (
            gold,
            f"so \\boxed{{{gold}}}.",
            f"as 2 + 2 = 4\n#### {gold}",
            f"The answer is ${gold}.",
            f"They need {gold} in all.",
        )
        assert [verdict.reward for verdict in judged("numeric", gold, *texts)] == [1.0] * len(texts)
        assert [verdict.reward for verdict in judged("numeric", gold, f"{number + 1}", "none", f"1{gold}")] == [0.0] * 3


@pytest.mark.parametrize("verifier", GOLDS)
def test_hostile_text_has_no_reward_and_takes_no_time(
    verifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGALRM)
    for name, text in HOSTILE.items():
        started = time.process_time()
        (verdict,) = judged(verifier, GOLDS[verifier], text)
        assert verdict.reward == 0.0, (name, verdict)
        assert time.process_time() - started < 5.0, name
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGALRM) is handler


@pytest.mark.parametrize(
    "gold",
    [
        r"\frac{",
        r"0.\overline{3",
        "",
        "  ",
        r"\begin{pmatrix}1&2",
        "$",
        "\\",
        "(1, )",
        r"\unknown{3}",
        "x" * 600,
        "(" * 40 + "1" + ")" * 40,
    ],
)
def test_a_gold_answer_that_math_cannot_read_is_refused(gold: str) -> None:
    with pytest.raises(ValueError, match="cannot be read by the verifier `math`"):
        refuse_gold("math", gold)

"""A second implementation judges the hand-checked pairs, and the documentation tells every pair on which it differs."""

from pathlib import Path

import pytest

from benchmarks.second_opinion import same, second_verdict
from tests.contract.test_verifiers import PAIRS

pytestmark = pytest.mark.contract

PAGE = (Path(__file__).parents[2] / "docs" / "verifiers.md").read_text()


def test_every_pair_that_a_second_implementation_judges_otherwise_is_told_of() -> None:
    rows = [row for row in PAGE.partition("## Where implementations differ")[2].splitlines() if row.startswith("| `")]
    judged = [(pair, second_verdict(pair)) for pair in PAIRS if pair["verifier"] in {"math", "numeric"}]
    differing = [pair for pair, said in judged if said is not None and said != pair["right"]]
    for pair in differing:
        by_hand = "the pair: right" if pair["right"] else "the pair: wrong"
        assert any(
            row.startswith(f"| `{pair['gold']}` ") and f"`{pair['answer']}`" in row and by_hand in row for row in rows
        ), pair
    assert len(differing) == sum(row.split("|")[2].count("`") // 2 for row in rows)
    assert sum(said is not None for _, said in judged) > 0.8 * len(judged)


@pytest.mark.parametrize(
    ("gold", "answer", "said"),
    [
        (r"\frac12", "0.5", True),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        (r"2\sqrt{3}", r"3\sqrt{2}", False),
        ("(x+1)^2", "x^2+2x+1", True),
        ("(x+1)^2", "x^2+2x", False),
        (r"\{1,2\}", "2, 1", True),
        ("(1,2)", "(2,1)", False),
        (r"50\%", "0.5", True),
        (r"\pm 5", "-5, 5", True),
        ("x > 5", "5 < x", None),
        ("__import__('os')", "1", None),
    ],
)
def test_the_second_reader_works_formulas_out(gold: str, answer: str, said: bool | None) -> None:
    assert same(gold, answer) is said

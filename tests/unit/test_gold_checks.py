"""Gold answers of whole files: each different one is checked once, by several processes where it takes long, and remembered."""

import sys
from pathlib import Path

import pytest

from actors.verifiers import gold_checks, refuse_gold
from actors.verifiers.gold_checks import refusals

pytestmark = pytest.mark.unit

FORMULAS = [f"\\frac{{{n}\\sqrt{{3}}}}{{7}}" for n in range(250)]
UNREADABLE = [r"\frac{", "(1, )", "\ud800$"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gold_checks, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_each_different_one_is_checked_once(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    asked: list[str] = []

    def refuse(verifier: str, gold: str) -> None:
        asked.append(gold)
        refuse_gold(verifier, gold)

    monkeypatch.setattr(gold_checks, "refuse_gold", refuse)
    found = refusals("numeric", ["1", "two", "1", "two", "2"])
    assert found.keys() == {"two"} and "two" in found["two"]
    assert asked == ["1", "two", "2"] and not cache.exists()


def test_what_takes_long_is_shared_by_processes_and_those_found_right_are_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    golds = [*FORMULAS, *UNREADABLE, *FORMULAS]
    in_one_process = refusals("math", golds)
    assert in_one_process.keys() == set(UNREADABLE)
    monkeypatch.setattr(gold_checks, "ALONE_S", -1.0)
    assert refusals("math", golds) == in_one_process
    shares: list[list[str]] = []

    def count(verifier: str, golds: list[str]) -> dict[str, str]:
        shares.append(golds)
        return {}

    monkeypatch.setattr(gold_checks, "_elsewhere", count)
    refusals("math", golds)
    assert sorted(gold for share in shares for gold in share) == sorted(UNREADABLE)
    # Another verifier, or another version of what reads, has another opinion.
    monkeypatch.setattr(gold_checks, "version", lambda name: "0")
    refusals("math", golds)
    assert sum(map(len, shares[1:])) == len(FORMULAS) - 1 + len(UNREADABLE)


def test_a_cache_that_cannot_be_kept_or_read_only_costs_time(
    monkeypatch: pytest.MonkeyPatch, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gold_checks, "ALONE_S", -1.0)
    monkeypatch.setattr(gold_checks, "_elsewhere", lambda verifier, golds: {"two": "it is no number"})
    cache.write_text("a file where the directory should be")
    assert refusals("numeric", ["1", "two", "2"]) == {"two": "it is no number"}
    assert "which gold answers are right is not kept" in caplog.text


def test_a_process_that_fails_is_said(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(gold_checks, "ALONE_S", -1.0)
    monkeypatch.setattr(gold_checks, "module_command", lambda *_: [sys.executable, "-c", "raise SystemExit('broken')"])
    with pytest.raises(RuntimeError, match=r"checking gold answers of the verifier `numeric` failed \(1\): broken"):
        refusals("numeric", ["1", "2", "3"])

"""Sides of a benchmark that take turns."""

import sys
from pathlib import Path

import pytest

from benchmarks.turns import Side

pytestmark = pytest.mark.unit
SPINS = """
import time
from benchmarks.turns import turns
for _ in turns():
    print("said by a library")
    until = time.process_time() + 0.05
    while time.process_time() < until: pass
"""


def test_a_side_steps_when_it_is_told_to_and_says_what_it_took(tmp_path: Path) -> None:
    with Side("spins", [sys.executable, "-c", SPINS], tmp_path / "log", threads=1) as side:
        for _ in range(2):
            took = side.step()
            assert 0.05 <= took["cpu_s"] <= took["wall_s"] + 0.02
        process = side.process
    assert process.poll() is not None and "said by a library" in (tmp_path / "log").read_text()


def test_a_side_that_ends_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"fails ended with 1; its log ends with:(.|\n)*ZeroDivisionError"):
        Side("fails", [sys.executable, "-c", "1 / 0"], tmp_path / "log", threads=1)

"""How long work says how far it is, in a terminal and without one."""

import io
import time

import pytest
from rich.console import Console

from deploy.report.progress import bar, progress
from moments_service.clusters.encoder import PromptEncoder
from moments_service.config import ClusterConfig

pytestmark = pytest.mark.unit


def test_a_bar_in_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with progress(console, "prompts embedded") as advance:
        advance(3, 8)
    assert "prompts embedded" in console.file.getvalue() and "3/8" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_line_now_and_then_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console = Console(file=io.StringIO(), force_terminal=False)
    with progress(console, "steps") as advance:
        for done in range(1, 31):
            now += 1.0
            advance(done * 100, 3000)
    said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert said == [
        "steps: 1,100 of 3,000, 100 a second, about 19 s left",
        "steps: 2,200 of 3,000, 100 a second, about 8 s left",
    ]
    with bar(console, "runs") as advance:
        advance(1, 2)
    assert len(console.file.getvalue().splitlines()) == 2  # type: ignore[attr-defined]


def test_prompts_that_were_embedded_before_an_interruption_are_kept(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moments_service.clusters.encoder._CHUNK", 2)
    encoder = PromptEncoder(ClusterConfig(cache_dir=str(tmp_path)))
    texts = [f"What is {number} + 1?" for number in range(5)]
    heard: list[tuple[int, int]] = []

    def interrupt(done: int, of: int) -> None:
        heard.append((done, of))
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.encode(texts, interrupt)
    assert encoder.encode(texts, lambda done, of: heard.append((done, of))).shape == (5, 384)
    assert heard == [(2, 5), (4, 5), (1, 1)]

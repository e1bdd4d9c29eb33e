"""The commands of the quick start do what that page says, and the run that they make is whole."""

import json
import sqlite3
from contextlib import closing

import pytest

from tests.integration.conftest import QuickStart

pytestmark = pytest.mark.integration


def test_the_quick_start_does_what_it_says(quick_start: QuickStart) -> None:
    assert len(quick_start.typed) >= 8
    assert "step   10/10" in quick_start.output and "moments-a" in quick_start.output
    assert (quick_start.directory / "moments-a" / "about.json").exists()
    assert (quick_start.directory / "runs" / "compare-cold-start" / "compare.png").exists()


def test_a_run_with_vllm_leaves_a_whole_run_directory(quick_start: QuickStart) -> None:
    run = quick_start.run
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) >= {
        "train",
        "held_out",
        "sources",
        "steps",
        "seconds",
        "phases",
        "signal_ratio",
        "effective_signal",
        "non_uniform_groups",
        "advice",
        "versions",
        "machine",
    }
    assert summary["steps"] == 10
    assert set(summary["phases"]) == {"generate", "score", "moments", "learn", "publish"}
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["policy_version"] for row in metrics] == list(range(1, 11))
    # On-policy in float32: trainer and engine agree on every sampled token.
    assert all(row["learner/mismatch_max"] < 1e-3 for row in metrics)
    # From the second step on history speaks up in groups of equal rewards.
    assert metrics[-1]["signal/own"] > metrics[-1]["signal/grpo"]
    for name in ("config.yaml", "summary.md", "summary.png", "policy/config.json", "policy/tokenizer.json"):
        assert (run / name).stat().st_size > 0, name
    with closing(sqlite3.connect(f"file:{run}/moments/ledger-000000.sqlite?mode=ro", uri=True)) as ledger:
        (groups,) = ledger.execute("SELECT COUNT(*) FROM groups").fetchone()
        (texts,) = ledger.execute("SELECT COUNT(*) FROM transcripts").fetchone()
    assert groups >= 10 * 32 and texts == groups
    # A log has one readable line a step.
    log = quick_start.output
    first_run = log[: log.index("bvblend runs")]
    assert sum(line.startswith("step ") for line in first_run.splitlines()) == 10

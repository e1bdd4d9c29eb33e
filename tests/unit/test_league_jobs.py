"""The league's jobs: lists of them, kills and failures, the table."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.league.jobs import Job, read_jobs, results, run_jobs
from benchmarks.league.table import half_width, student_quantile, tables
from moments_service.durable import append_line

pytestmark = pytest.mark.unit


def test_a_list_stands_for_as_many_jobs(tmp_path: Path) -> None:
    (tmp_path / "jobs.yaml").write_text("- {task: fresh, estimator: [grpo, rloo], seed: [0, 1], frozen_at: [1, 2]}")
    jobs = read_jobs(tmp_path / "jobs.yaml")
    assert [(job.estimator, job.seed) for job in jobs] == [("grpo", 0), ("grpo", 1), ("rloo", 0), ("rloo", 1)]
    assert {job.frozen_at for job in jobs} == {(1, 2)}


def working(job: Job) -> dict[str, object]:
    """A job that fails, dies or works, as its estimator says."""
    if job.estimator == "fails":
        raise ValueError("no such estimator")
    if job.estimator == "dies":
        import os

        os.kill(os.getpid(), 9)
    return {"seed": job.seed}


def test_jobs_that_fail_or_die_are_written_down_and_stop_no_other(tmp_path: Path) -> None:
    jobs = [Job(task="t", estimator=name, seed=seed) for name in ("fails", "dies", "works") for seed in (0, 1)]
    assert run_jobs(jobs, tmp_path, 2, working, say=lambda line: None) == 4
    rows = {(row["job"]["estimator"], row["job"]["seed"]): row for row in results(tmp_path)}
    assert len(rows) == 6
    assert "no such estimator" in rows["fails", 0]["error"] and "code -9" in rows["dies", 1]["error"]
    assert rows["works", 1]["result"] == {"seed": 1}


def test_a_start_does_what_has_no_result_and_parts_share_the_jobs(tmp_path: Path) -> None:
    jobs = [Job(task="t", estimator="works", seed=seed) for seed in range(5)]
    line = {"job": jobs[0].model_dump(mode="json"), "result": {"seed": "before"}, "seconds": 0.0}
    append_line(tmp_path / "results.jsonl", json.dumps(line).encode())
    # A kill left the half of a line.
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(b'{"job": {"task": "t", "seed": 1')
    for part in (1, 2):
        assert run_jobs(jobs, tmp_path, 1, working, (part, 2), say=lambda line: None) == 0
    found = results(tmp_path)
    assert sorted(row["job"]["seed"] for row in found) == [0, 1, 2, 3, 4]
    assert next(row for row in found if row["job"]["seed"] == 0)["result"] == {"seed": "before"}


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [(0.975, 1, 12.7062), (0.975, 4, 2.7764), (0.975, 30, 2.0423), (0.9975, 4, 5.5976)],
)
def test_quantiles_are_those_of_the_tables(probability: float, freedom: int, expected: float) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-3)


def test_more_comparisons_make_wider_intervals() -> None:
    values = [0.1, 0.3, 0.2, 0.4, 0.25]
    assert half_width(values) == pytest.approx(2.7764 * np.std(values, ddof=1) / 5**0.5, rel=1e-3)
    assert half_width(values, comparisons=10) == pytest.approx(5.5976 * np.std(values, ddof=1) / 5**0.5, rel=1e-3)


def test_differences_are_paired_by_seed() -> None:
    rows = [
        {
            "job": {"task": "t", "estimator": name, "clusters": "one", "seed": seed},
            "result": {"end": {"held_out": {"pass_at": {"1": level}}}, "seconds": 1.0},
        }
        for name, levels in (("grpo", [0.1, 0.2, 0.3]), ("rloo", [0.15, 0.26, 0.34]))
        for seed, level in enumerate(levels)
    ]
    lines = tables(rows, "held_out", "grpo").splitlines()
    width = half_width([0.05, 0.06, 0.04])
    assert f"| rloo | one | 3 | 0.250 | +0.050 | ± {width:.3f} | 1 |" in lines
    assert "| grpo | one | 3 | 0.200 |  |  | 1 |" in lines

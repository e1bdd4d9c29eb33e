"""The league: its policy is the real one, its probabilities are exact, its jobs survive kills."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.league.jobs import Job, read_jobs, results, run_jobs
from benchmarks.league.policy import Policy
from benchmarks.league.sampling import last, padded, sample, success_probabilities
from benchmarks.league.table import half_width, student_quantile
from moments_service.durable import append_line

pytestmark = pytest.mark.unit

POLICY = Path(__file__).parents[2] / "deploy" / "recipes" / "cold_start" / "policy"
END = 1


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn_prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(2, 300, size) for size in (9, 30, 17)]


@torch.no_grad()
def test_prompts_and_completions_have_the_logits_of_transformers() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(POLICY)
    policy, prompts = Policy(POLICY), drawn_prompts()
    tokens, lengths = padded(prompts)
    said = torch.randint(2, 300, (len(prompts), 2, 4), generator=torch.Generator().manual_seed(0))
    hidden, past = policy.read(tokens, lengths)
    # Two tokens of both completions, then two more: time comes first.
    first, past = policy.go_on(past, said[..., :2].transpose(1, 2).flatten(1), 2)
    second, _ = policy.go_on(past, said[..., 2:].transpose(1, 2).flatten(1), 2)
    for row, prompt in enumerate(prompts):
        for member in range(2):
            whole = torch.cat([torch.from_numpy(prompt), said[row, member]])[None]
            parts = [hidden[row, : len(prompt)], first[row, member::2], second[row, member::2]]
            torch.testing.assert_close(policy.logits(torch.cat(parts)), model(whole).logits[0], rtol=1e-4, atol=1e-4)


def test_a_completion_comes_as_often_as_its_probability_says() -> None:
    policy, prompts = Policy(POLICY), drawn_prompts()
    draws = 2000
    tokens, lengths = padded(prompts)
    hidden, past = policy.read(tokens, lengths)
    said = sample(policy, past, last(hidden, lengths), draws, 6, END, torch.Generator().manual_seed(0))
    for row, prompt in enumerate(prompts):
        completions = [tuple(said.tokens[row, member, : said.lengths[row, member]].tolist()) for member in range(draws)]
        favourite = max(set(completions), key=completions.count)
        share = completions.count(favourite) / draws
        (expected,) = success_probabilities(policy, [prompt], [np.array(favourite)])
        assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / draws) ** 0.5)


def test_names_of_tensors_are_those_of_the_file() -> None:
    from safetensors.torch import load_file

    written = load_file(POLICY / "model.safetensors")
    found = Policy(POLICY).tensors()
    assert found.keys() == written.keys()
    assert all(torch.equal(found[name], written[name]) for name in written)


def test_a_list_stands_for_as_many_jobs(tmp_path: Path) -> None:
    (tmp_path / "jobs.yaml").write_text("- {task: fresh, estimator: [grpo, rloo], seed: [0, 1], snapshots: [1, 2]}")
    jobs = read_jobs(tmp_path / "jobs.yaml")
    assert [(job.estimator, job.seed) for job in jobs] == [("grpo", 0), ("grpo", 1), ("rloo", 0), ("rloo", 1)]
    assert {job.snapshots for job in jobs} == {(1, 2)}


def working(job: Job, directory: Path) -> dict[str, object]:
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
    line = {"key": jobs[0].key, "job": jobs[0].model_dump(mode="json"), "result": {"seed": "before"}, "seconds": 0.0}
    append_line(tmp_path / "results.jsonl", json.dumps(line).encode())
    # A kill left the half of a line.
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(b'{"key": "' + jobs[1].key.encode())
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

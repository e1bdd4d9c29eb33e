"""Results of evaluations: what they come to, as files, against each other, and what is evaluated."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from actors.prompts.files import load_file
from actors.prompts.prompt import Prompt
from actors.rollout.evaluated import EvaluationDraw, given_answer
from deploy.config.recipe import ConfigError, load_recipe
from deploy.evaluation.comparison import differences, power, remarks, write_differences
from deploy.evaluation.measure import depths, measures
from deploy.evaluation.result import EvaluationResult, read_result, with_clusters, write_result
from deploy.evaluation.what import asked, file_source, policy_of_run
from deploy.report.evaluation import draw_differences, draw_result, notes, shown_result
from deploy.rundir.layout import RunDirectory
from moments_service.durable import put_directory
from tests.conftest import ROOT
from tests.made_evaluations import judged

pytestmark = pytest.mark.unit

HOW = EvaluationDraw(samples=4, temperature=1.0, top_p=1.0, top_k=0, max_tokens=9)
GROUPS = (
    judged(1.0, 0.0, 0.0, 1.0, lengths=(3, 4, 5, 9)),
    judged(0.0, 0.0, None, 1.0, lengths=(2, 2, 9, 2)),
    judged(1.0, 1.0, 1.0, 1.0, lengths=(1, 1, 1, 2)),
)


def prompts(*sources: str) -> list[Prompt]:
    return [Prompt(f"p{i}", source, "1+1=", "2", "exact") for i, source in enumerate(sources)]


def result(name: str = "one", groups: tuple = GROUPS, clusters: dict[str, int] | None = None) -> EvaluationResult:  # type: ignore[type-arg]
    named = prompts("sums", "sums", "gcd")[: len(groups)]
    return EvaluationResult(name, "held out prompts", HOW, with_clusters(named, groups, clusters or {}))


def test_every_estimate_is_over_the_prompts_with_enough_judged_samples() -> None:
    found = measures(GROUPS)
    assert depths(GROUPS) == [1, 2, 4]
    assert found["pass@1"].mean == pytest.approx((0.5 + 1 / 3 + 1) / 3) and found["pass@1"].prompts == 3
    assert found["pass@2"].mean == pytest.approx((5 / 6 + 2 / 3 + 1) / 3) and found["pass^2"].mean == pytest.approx(
        (1 / 6 + 0 + 1) / 3
    )
    assert found["pass@4"].prompts == 2 and found["pass@4"].mean == 1.0 and found["pass^4"].mean == 0.5
    assert found["maj@4"].mean == 1.0 and "g-pass@2" not in found and found["g-pass@4"].mean == 1.0
    for one in found.values():
        assert one.low is not None and one.high is not None and 0 <= one.low <= one.mean <= one.high <= 1
        assert one.exact_low is not None and one.exact_high is not None
        assert 0 <= one.exact_low <= one.mean <= one.exact_high <= 1 and one.exact_high > one.exact_low
    assert math.isclose(found["pass@1"].sampling_error or 0, math.sqrt((1 / 3) / 4 + (1 / 3) / 3) / 3)


def test_a_result_is_read_as_it_was_written_and_says_first_what_it_comes_to(tmp_path: Path) -> None:
    written, path = result(clusters={"p0": 3, "p2": 1}), tmp_path / "eval.json"
    write_result(written, path)
    assert read_result(path) == written
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert list(found)[:4] == ["policy", "of", "how", "samples"] and (found["samples"], found["unscored"]) == (12, 1)
    assert found["reasons"] == {"verifier: broken": 1} and found["measures"]["pass@1"]["prompts"] == 3
    assert found["sources"]["sums"]["pass@1"]["prompts"] == 2 and found["clusters"].keys() == {"1", "3"}


@pytest.mark.parametrize("text", ["{}", "[]", "no", '{"policy": 1, "of": "", "how": {}, "prompts": []}'])
def test_another_file_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ConfigError, match=r"other.json: not what `bvblend eval --out` writes"):
        read_result(tmp_path / "other.json")


def test_what_has_no_reward_is_said_and_is_in_no_measure() -> None:
    assert list(result(clusters={"p0": 10, "p1": 9}).by("cluster")) == ["9", "10"]
    said = " ".join(notes(result()))
    assert "1 of 12 samples have no reward and are in no measure: 1 x verifier: broken" in said
    assert "half of them 2 or fewer, at most 9; 25.0% of 12 were cut at 9" in said


def test_a_result_can_be_shown_and_drawn(tmp_path: Path) -> None:
    from rich.console import Console

    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    console.print(shown_result(result(name="[bold]one[/bold]", clusters={"p0": 0, "p1": 1})))
    text = console.export_text()
    assert "[bold]one[/bold] on held out prompts" in text and "mg-pass@4" in text and "sampling error" in text
    draw_result(result(name="$x_{"), tmp_path / "eval.png")
    assert (tmp_path / "eval.png").read_bytes().startswith(b"\x89PNG")
    draw_result(result(groups=GROUPS[:1]), tmp_path / "one.png")


def test_differences_are_paired_by_prompt() -> None:
    worse = (judged(0.0, 0.0, 0.0, 1.0), judged(0.0, 0.0, None, 1.0), judged(1.0, 1.0, 1.0, 0.0))
    found = differences(result("worse", worse), result("better"))
    whole = found[""]
    assert whole.prompts == 3 and whole.second - whole.first == pytest.approx((0.25 + 0 + 0.25) / 3)
    assert whole.interval is not None and whole.interval.mean == pytest.approx(0.5 / 3)
    assert found["gcd"].interval is None and found["gcd"].prompts == 1
    unjudged = differences(result("a", (judged(None, None), *GROUPS[1:])), result("b"))
    assert unjudged[""].prompts == 2


def test_a_comparison_says_what_is_not_in_it_and_what_else_differs(tmp_path: Path) -> None:
    first, second = result("a", (judged(None, 1.0), judged(None), *GROUPS[2:])), result("$b_{", GROUPS[:2])
    assert remarks(result(groups=GROUPS[::2]), result(groups=GROUPS[::2])) == []
    said = remarks(first, replace(second, how=replace(HOW, temperature=0.5, max_tokens=20)))
    assert said[0] == "not drawn alike, which is part of the difference: temperature 1 and 0.5, max_tokens 9 and 20"
    assert said[1].startswith("2 of 3 prompts of the first are in no difference")
    assert said[2].startswith("2 of 7 samples of the first have no reward")
    assert said[3].startswith("1 of 2 prompts of the second") and said[4].startswith("1 of 8 samples of the second")
    write_differences(first, second, tmp_path / "change.json")
    found = json.loads((tmp_path / "change.json").read_text(encoding="utf-8"))
    assert found["differences"][""]["prompts"] == 1 and found["differences"]["sums"]["interval"] is None
    draw_differences("a", "$b_{", differences(first, second), tmp_path / "change.png")
    draw_differences("a", "b", differences(result(), result()), tmp_path / "same.png")
    assert (tmp_path / "change.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(ConfigError, match="were evaluated on no common prompt"):
        differences(result("a", GROUPS[:1]), result("b", (judged(None),)))


def test_fewer_prompts_suffice_where_policies_are_alike_or_samples_many() -> None:
    found = power(result(), 0.1, (1, 4))
    assert found[1].alike < found[0].alike <= found[0].unlike and found[1].alike < found[1].unlike
    assert power(result(), 0.2, (4,))[0].unlike < found[1].unlike
    with pytest.raises(ConfigError, match="--power 0: a difference of pass@1 lies between 0 and 1"):
        power(result(), 0.0, (1,))
    with pytest.raises(ConfigError, match="greedy samples of a prompt are all the same"):
        power(replace(result(), how=replace(HOW, temperature=0.0)), 0.1, (1,))
    with pytest.raises(ConfigError, match="evaluate with --samples 4"):
        power(result(groups=(judged(1.0), judged(0.0))), 0.1, (1,))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("16 - 3 = 13\n#### 13", "13"),
        ("The answer is  42.", "42"),
        ("first\n**Paris**\n\n", "Paris"),
        ("", None),
    ],
)
def test_the_answer_that_a_completion_votes_for(text: str, answer: str | None) -> None:
    assert given_answer(text) == answer


@pytest.mark.parametrize(
    ("row", "question", "gold"),
    [
        ({"question": "1+1?", "answer": "so\n#### 2"}, "1+1?", "2"),
        ({"problem": "1+1?", "answer": "2", "solution": "trivial", "level": 3}, "1+1?", "2"),
        ({"ID": "I-1", "Problem": "1+1?", "Answer": 2}, "1+1?", "2"),
    ],
    ids=["GSM8K", "MATH-500", "AIME"],
)
def test_files_of_benchmarks_are_read_by_their_usual_columns(
    row: dict[str, object], question: str, gold: str, tmp_path: Path
) -> None:
    path = tmp_path / "bench.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (prompt,) = load_file(
        file_source(
            path,
            "math",
            "Q: {question}",
        ),
        Path(),
        need_difficulty=False,
    ).train
    assert (prompt.text, prompt.answer, prompt.source) == (f"Q: {question}", gold, "bench")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it has no rows"),
        ("no", "its first row: not JSON"),
        ('{"a": 1}', "no column for the question"),
        ('{"question": "?"}', "gold"),
    ],
)
def test_a_file_without_them_is_refused_by_name(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "bench.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=words):
        file_source(tmp_path / "bench.jsonl", "math", "{question}")
    with pytest.raises(ConfigError, match="no such file"):
        file_source(ROOT / "nowhere.jsonl", "math", "{question}")


def test_a_limit_takes_the_same_prompts_in_whatever_order_they_come() -> None:
    some = prompts(*"abcdef")
    assert {one.prompt_id for one in asked(some, 3)} == {one.prompt_id for one in asked(some[::-1], 3)}
    assert asked(some, None) == tuple(some)


def test_a_damaged_checkpoint_is_not_evaluated(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    partial = tmp_path / "partial"
    (partial / "learner").mkdir(parents=True)
    (partial / "learner" / "weights.safetensors").write_bytes(b"as they were")
    run.checkpoints.mkdir(parents=True)
    put_directory(partial, run.checkpoint(3))
    (run.checkpoint(3) / "learner" / "weights.safetensors").write_bytes(b"as they are")
    config = load_recipe(ROOT / "deploy" / "recipes" / "cold_start.yaml", ())
    asked_for = policy_of_run(run, config, 3)
    with pytest.raises(ConfigError, match=r"weights.safetensors is damaged.*name an older checkpoint with --step"):
        asked_for.__enter__()

"""Logs of other trainers: TRL's tables of completions and verl's rollout lines are read as groups."""

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from typer.testing import CliRunner

from deploy.cli.main import app
from moments_service.offline.logs import LogError, parse_groups, read_log

pytestmark = pytest.mark.unit

QUESTIONS = ("What is 3 + 4?", "Spell 'house' backwards.")


def trl_table(directory: Path, step: int, rewards: list[Any], **columns: Any) -> None:
    """As GRPOTrainer writes it: two completions of each question, side by side."""
    prompts = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": q}] for q in QUESTIONS]
    rows = {
        "step": [step] * 4,
        "prompt": [prompt for prompt in prompts for _ in range(2)],
        "completion": [[{"role": "assistant", "content": f"{step} {i}"}] for i in range(4)],
        "accuracy": rewards,
        "format": [0.5, None, 0.5, 0.0],
        "said": ["a", "b", "c", "d"],
        "advantage": [0.0] * 4,
    }
    pandas.DataFrame({**rows, **columns}).to_parquet(directory / f"completions_{step:05d}.parquet")


def test_completions_of_trl_are_groups_in_order_of_their_steps(tmp_path: Path) -> None:
    trl_table(tmp_path, 10, [1.0, None, 0.0, 1.0])
    trl_table(tmp_path, 9, [0.0, 0.0, 1.0, 1.0])
    log = read_log(tmp_path)
    assert [(group.step, group.prompt, group.rewards) for group in log.groups] == [
        (9, QUESTIONS[0], (0.5, 0.0)),
        (9, QUESTIONS[1], (1.5, 1.0)),
        (10, QUESTIONS[0], (1.5, None)),
        (10, QUESTIONS[1], (0.5, 1.0)),
    ]
    assert log.reward == "accuracy + format"
    only = read_log(tmp_path, {"accuracy": 2.0})
    assert only.groups[3].rewards == (0.0, 2.0) and only.reward == "2 accuracy"


def test_a_generation_that_trl_logged_at_two_steps_counts_once(tmp_path: Path) -> None:
    same = {"completion": ["a", "b", "c", "d"]}
    for step in (1, 2):
        trl_table(tmp_path, step, [1.0, 0.0, 0.0, 1.0], **same)
    trl_table(tmp_path, 3, [1.0, 0.0, 0.0, 1.0])
    log = read_log(tmp_path)
    assert [group.step for group in log.groups] == [1, 1, 3, 3] and log.repeated == 2


def group_line(step: int, group: str, rewards: list[float]) -> str:
    return json.dumps({"step": step, "group": group, "cluster": 0, "rewards": rewards}) + "\n"


def test_a_group_that_stands_in_two_files_of_a_directory_counts_once(tmp_path: Path) -> None:
    """A log that was written again after a resume, or a copy that was left beside it, also where files lie between."""
    first, second, third = (group_line(step, "g", [step, 0]) for step in (1, 2, 3))
    for name, text in (("1", first + second), ("2", third), ("3", second + first)):
        (tmp_path / f"{name}.jsonl").write_text(text)
    log = read_log(tmp_path)
    assert [(group.step, group.rewards) for group in log.groups] == [(1, (1, 0)), (2, (2, 0)), (3, (3, 0))]
    assert log.repeated == 2
    (tmp_path / "4.jsonl").write_text(group_line(2, "g", [0, 0]))
    with pytest.raises(LogError, match=r"4\.jsonl: line 1: group 'g' of step 2 was there before, with other values"):
        read_log(tmp_path)


def test_completions_that_stand_in_two_files_of_a_directory_count_once(tmp_path: Path) -> None:
    text = {step: "".join(verl_line(step, "p", i, output=f"{i}") + "\n" for i in range(2)) for step in (1, 2, 3)}
    for name, steps in (("1", (1,)), ("3", (3,)), ("3-copied-1", (1, 3))):
        (tmp_path / f"{name}.jsonl").write_text("".join(text[step] for step in steps))
    log = read_log(tmp_path)
    assert [(group.step, group.rewards) for group in log.groups] == [(1, (0, 1)), (3, (0, 1))]
    assert log.repeated == 2


def verl_line(step: float, prompt: str, score: Any, **more: Any) -> str:
    return json.dumps({"input": prompt, "output": "…", "gts": "7", "score": score, "step": step, **more})


def test_rollout_lines_of_verl_are_groups(tmp_path: Path) -> None:
    """verl mixes the rows of a batch; a prompt that came twice in it is two groups."""
    order = (0, 1, 0, 2, 1, 2, 2, 2)
    for step in (2, 10):
        lines = [verl_line(float(step), f"prompt {k}", i % 2, output=f"{step} {i}") for i, k in enumerate(order)]
        (tmp_path / f"{step}.jsonl").write_text("\n".join(lines) + "\n")
    log = read_log(tmp_path)
    assert [group.step for group in log.groups] == [2] * 4 + [10] * 4
    assert [group.rewards for group in log.groups[:4]] == [(0, 0), (1, 0), (1, 1), (0, 1)]
    assert len({group.group for group in log.groups if group.step == 2}) == 4


def test_ragged_groups_stay_together(tmp_path: Path) -> None:
    prompts = ["a", "a", "b", "b", "c"]
    file = tmp_path / "1.jsonl"
    file.write_text("\n".join(verl_line(1, prompt, i) for i, prompt in enumerate(prompts)))
    assert [group.rewards for group in read_log(file).groups] == [(0, 1), (2, 3), (4,)]


def test_a_group_sent_twice_counts_once_and_steps_may_be_floats() -> None:
    line = '{"step": 1.0, "group": "g", "cluster": 2.0, "rewards": [1, 0]}'
    log = parse_groups([line, line.replace('"g"', '"h"'), line], "log.jsonl")
    assert [(group.step, group.group, group.cluster) for group in log.groups] == [(1, "g", 2), (1, "h", 2)]
    assert log.repeated == 1
    with pytest.raises(LogError, match=r"log.jsonl: line 2: group 'g' of step 1 was there before, with other values"):
        parse_groups([line, line.replace("[1, 0]", "[0, 0]")], "log.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("log.jsonl", b'{"step": 1, "group": "\xff"}\n', "log.jsonl: line 1: Invalid JSON"),
        ("log.jsonl", b"\n", "log.jsonl: the log is empty"),
        ("1.jsonl", verl_line(1, "p", "good").encode(), "1.jsonl: line 1: score is 'good', not a finite number"),
        ("1.jsonl", verl_line(1.5, "p", 1).encode(), "1.jsonl: line 1: step: "),
        ("1.jsonl", b'{"input": "p", "output": "o", "score": 1}', "1.jsonl: line 1: no step"),
        ("1.jsonl", b'{"input": "p", "output": "o", "step": 1}', "1.jsonl: line 1: no column score"),
        ("1.jsonl", f"{verl_line(1, 'p', 1)}\n{{".encode(), "1.jsonl: line 2: "),
        pytest.param("1.jsonl", f"{verl_line(1, 'p', 1)}\n{'[' * 200_000}".encode(), "1.jsonl: line 2: ", id="nested"),
        ("1.jsonl", verl_line(1, "\ud800", 1).encode(), "surrogates not allowed"),
        ("completions_1.parquet", b"PAR1", "completions_1.parquet: "),
    ],
)
def test_a_log_that_cannot_be_read_is_refused_by_file_and_line(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LogError) as refused:
        read_log(tmp_path / name)
    assert problem in str(refused.value)


def test_a_directory_without_a_log_and_a_table_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"neither \*.parquet nor \*.jsonl there"):
        read_log(tmp_path)
    pandas.DataFrame({"prompt": ["p"], "answer": ["a"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(LogError, match=r"train\.parquet: no column step; TRL's completions have"):
        read_log(tmp_path)


def test_the_command_says_what_it_took_for_the_reward(tmp_path: Path) -> None:
    trl_table(tmp_path, 1, [1.0, 0.0, 0.0, 1.0])
    grpo = ["replay", str(tmp_path), "--estimator", "grpo"]
    done = CliRunner().invoke(app, [*grpo, "--reward", "accuracy", "--set", "clusters.count=1"])
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == [1, 1]
    assert "reward: accuracy" in done.stderr
    for wrong, problem in (("acuracy", "no column acuracy"), ("accuracy=x", "'x' is no number")):
        refused = CliRunner().invoke(app, [*grpo, "--reward", wrong])
        assert refused.exit_code != 0 and problem in (refused.output + str(refused.exception))

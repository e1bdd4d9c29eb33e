"""What a person and a script get from a run: the display, the summary, the plan, the run directory."""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from actors.prompts.pool import PromptPool
from deploy.cluster.environment import check_packages
from deploy.cluster.plan import arithmetic_table, plan_rows, policy_parameters
from deploy.config.recipe import load_recipe
from deploy.evaluation.measure import measure
from deploy.report.live import LiveDisplay, PlainDisplay, create_display, sparkline
from deploy.report.summary import summarise
from deploy.rundir.evaluation import Evaluation
from deploy.rundir.layout import RunDirectory
from deploy.rundir.open_run import OpenRun
from moments_service.clusters.labels import LabelClusters
from moments_service.clusters.versions import LOG_FILE, ClusterVersions
from moments_service.health import Alarm
from tests.conftest import ROOT
from tests.made_evaluations import judged
from tests.unit.test_work import PROMPTS

pytestmark = pytest.mark.unit

STATS = {"clusters": {"mean": [0.2, 0.7], "variance": [0.16, 0.21], "mass": [30.0, 3.0], "weight": [0.5, 0.1]}}


def row(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "seconds": 1.25,
        "phases": {"generate": 0.5, "score": 0.1, "moments": 0.02, "learn": 0.4, "publish": 0.1},
        "reward/mean": 0.3,
        "reward/pass_at_1": 0.25,
        "pass_at_1/sums": 0.25,
        "signal/own": 0.9,
        "signal/grpo": 0.2,
        "effective_signal/own": 0.6,
        "effective_signal/grpo": 0.5,
        "reward/non_uniform": 0.2,
        "tokens_per_s": 200.0,
        "learner/entropy": 0.5,
        "learner/grad_norm": 0.1,
        **changes,
    }


def test_without_a_terminal_there_is_one_readable_line_a_step() -> None:
    output = io.StringIO()
    display = create_display(Console(file=output, width=40), steps=10)
    assert isinstance(display, PlainDisplay)
    display.show_step(row(0), STATS)
    display.show_step(row(1), STATS)
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    assert "step    1/10" in lines[0] and "effective signal 60% (GRPO 50%)  groups that differ 20%" in lines[0]


def test_the_live_view_shows_what_the_run_is_about() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=40, record=True)
    display = create_display(console, steps=10)
    assert isinstance(display, LiveDisplay)
    display.name_clusters(["sums", "legs, gcd"])
    display.show_step(row(0), STATS)
    display.close()
    text = console.export_text()
    for expected in (
        "step 1 of 10",
        "60% of a perfect baseline's",
        "GRPO's 50%",
        "rewards differ in 20% of the groups",
        "legs, gcd",
        "learn 0.40",
        "200 tok/s",
    ):
        assert expected in text


def test_sparklines_span_zero_to_one() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"


def test_pass_at_1_leaves_errors_out() -> None:
    groups = [judged(1.0, 0.0, lengths=(2, 4)), judged(1.0, None, lengths=(3, 7)), judged(None, None, lengths=(1, 1))]
    found = measure(PROMPTS[:3], groups)
    assert (found.pass_at_1, found.sources, found.prompts, found.errors) == (0.75, {"sums": 0.75}, 3, 3)
    # Two prompts are judged, .5 and 1: a t interval with one degree of freedom.
    assert found.half_width == pytest.approx(12.7062 * 0.25, rel=1e-5)
    assert found.low is not None and found.high is not None and 0 < found.low < 0.75 < found.high < 1
    # Only the first has two samples with a reward, and one of them is right.
    assert (
        found.maj_at_k == {"2": 1.0}
        and found.pass_at_k == {"2": 1.0}
        and found.length == 3.0
        and found.truncated == pytest.approx(4 / 6)
    )


def test_a_summary_has_the_promised_keys_and_a_picture(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "test", "config")
    for step in range(12):
        run.append_metrics(row(step))
    before, after = Evaluation(0.1, {"sums": 0.1}, 4, 0), Evaluation(0.6, {"sums": 0.6}, 4, 0, low=0.51, high=0.69)
    summarise(run, {"train": before, "held_out": before}, {"train": after, "held_out": before}, "bv_blend")
    summary = json.loads(run.summary.read_text())
    assert summary["train"] == {"start": 0.1, "end": 0.6}
    assert summary["sources"]["sums"]["train"] == {"start": 0.1, "end": 0.6}
    assert summary["intervals"]["train"] == {"start": None, "end": [0.51, 0.69]}
    assert "| 95 % | – | 0.51–0.69 | – | – |" in (run.path / "summary.md").read_text(encoding="utf-8")
    assert summary["steps"] == 12 and summary["seconds"] == pytest.approx(15.0)
    assert summary["signal_ratio"] == {"own": pytest.approx(0.9), "grpo": pytest.approx(0.2)}
    assert summary["effective_signal"] == {"own": pytest.approx(0.6), "grpo": pytest.approx(0.5)}
    assert summary["non_uniform_groups"] == pytest.approx(0.2) and summary["advice"] is None
    text = (run.path / "summary.md").read_text()
    assert (
        "had 60% of the signal to noise that a perfect baseline would have had, those of GRPO on the same groups 50%"
        in text
    )
    assert summary["phases"]["learn"] == pytest.approx(0.4)
    assert (run.path / "summary.png").read_bytes().startswith(b"\x89PNG")
    assert "| sums | 0.100 | 0.600 |" in (run.path / "summary.md").read_text()


def test_a_run_without_held_out_prompts_writes_strict_json(tmp_path: Path) -> None:
    """`held_out: 0` is the default: what was not measured is null, and a number that JSON does not have is never written."""
    run = RunDirectory.create(tmp_path, "test", "config")
    run.append_metrics(row(0, **{"learner/entropy": float("nan"), "reward/mean": np.float64(0.5)}))
    nothing = measure(PROMPTS[:1], [judged(None, None)])
    assert nothing == Evaluation(pass_at_1=None, sources={}, prompts=1, errors=2, length=1.0, truncated=0.0)
    run.append_evaluation(0, "train", nothing)
    summarise(run, {"train": nothing}, {"train": Evaluation(0.6, {"sums": 0.6}, 4, 0)}, "bv_blend")
    strict = partial(json.loads, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    for path in (run.metrics, run.evaluations):
        for text in path.read_text().splitlines():
            strict(text)
    assert strict(run.summary.read_text())["held_out"] == {"start": None, "end": None}
    assert run.read_metrics()[0]["reward/mean"] == 0.5


def test_half_a_line_is_no_line_and_swallows_no_other(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "test", "config")
    run.append_metrics({"step": 0})
    with run.metrics.open("a") as file:
        file.write('{"step": 1, "rew')
    assert [line["step"] for line in run.read_metrics()] == [0]
    run.append_metrics({"step": 1})
    assert [line["step"] for line in run.read_metrics()] == [0, 1]
    assert [line["step"] for line in run.last_metrics(5)] == [0, 1]


@pytest.mark.parametrize("cut", [1, 9, -2, -1])
def test_every_log_that_a_power_cut_left_in_the_middle_of_a_line_goes_on(tmp_path: Path, cut: int) -> None:
    run = RunDirectory.create(tmp_path, "test", "config")
    clusters = ClusterVersions(run.moments, incarnation=0)
    alarm = Alarm("reward fell", 0, 0.5, 0.1)
    for step in (0, 1):
        run.append_metrics({"step": step})
        run.append_evaluation(step, "train", Evaluation(0.5, {"sums": 0.5}, 2, 0))
        run.append_alarm(step, alarm)
        clusters.record(LabelClusters("source", ("a", "b")[: step + 1]), step)
    logs = (run.metrics, run.evaluations, run.alarms, run.moments / LOG_FILE)
    whole = [log.read_bytes() for log in logs]
    for log, text in zip(logs, whole, strict=True):
        log.write_bytes(text + text.splitlines()[-1][:cut])
    assert [row["step"] for row in run.read_metrics()] == [0, 1]
    assert run.read_evaluations(1) == {"train": Evaluation(0.5, {"sums": 0.5}, 2, 0)} and run.read_evaluations(2) == {}
    assert len(clusters.all_records()) == 2
    run.append_metrics({"step": 2})
    run.append_evaluation(2, "train", Evaluation(0.6, {}, 2, 0))
    run.append_alarm(2, alarm)
    clusters.record(LabelClusters("source", ("a", "b", "c")), 2)
    for log, text in zip(logs, whole, strict=True):
        assert log.read_bytes().startswith(text) and len(log.read_bytes().splitlines()) == 3
    assert run.read_evaluations(2)["train"].pass_at_1 == 0.6 and len(clusters.all_records()) == 3


def test_two_attempts_at_one_checkpoint_write_into_places_of_their_own(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "test", "config")
    first, second = run.begin_checkpoint(3), run.begin_checkpoint(3)
    assert first != second
    (second / "whole").write_text("yes")
    run.finish_checkpoint(second, 3, keep=1)
    assert first.exists() and (run.checkpoint(3) / "whole").exists()
    run.sweep()
    assert not first.exists() and run.checkpoint_steps() == [3]


def test_a_run_directory_keeps_only_whole_checkpoints_and_the_newest(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "test", "config")
    assert (tmp_path / "latest").resolve() == run.path
    for step in (1, 2, 3):
        partial = run.begin_checkpoint(step)
        (partial / "part").write_text(str(step))
        run.finish_checkpoint(partial, step, keep=2)
    run.begin_checkpoint(4)
    assert run.checkpoint_steps() == [2, 3]
    assert (run.checkpoint(3) / "part").read_text() == "3"


def test_a_step_that_ran_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "test", "config")
    for step, value in ((0, 0.1), (1, 0.2), (1, 0.3), (2, 0.4)):
        run.append_metrics({"step": step, "value": value})
    assert [line["value"] for line in run.read_metrics()] == [0.1, 0.3, 0.4]


def test_steps_of_a_history_that_a_resume_left_are_no_part_of_the_run(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "test", "config")
    for step in (0, 1, 2, 3, 1):
        run.append_metrics({"step": step})
    assert [line["step"] for line in run.read_metrics()] == [0, 1]
    assert run.last_metrics(10) == run.read_metrics()


def test_a_summary_leaves_out_steps_past_the_policy(tmp_path: Path) -> None:
    """A run of twelve steps that went back to its seventh and ended there."""
    run = RunDirectory.create(tmp_path, "test", "config")
    for step in range(12):
        run.append_metrics(row(step))
    ends = {"train": Evaluation(0.6, {"sums": 0.6}, 4, 0)}
    assert summarise(run, ends, ends, "bv_blend", steps=7)["steps"] == 7
    assert json.loads(run.summary.read_text())["seconds"] == pytest.approx(
        summarise(run, ends, ends, "bv_blend")["seconds"] * 7 / 12
    )


def test_whatever_else_lies_beside_checkpoints_is_left_alone(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "test", "config")
    strangers = ["step-000001.bak", "step-0000001", "step-٠٠٠٠٠١", "step-1", "old"]
    for name in strangers:
        (run.checkpoints / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (run.checkpoints / "step-000002").symlink_to(tmp_path / "elsewhere")
    (run.checkpoints / "step-000003").write_text("a file")
    for step in (5, 6, 7):
        run.finish_checkpoint(run.begin_checkpoint(step), step, keep=1)
    run.sweep()
    assert run.checkpoint_steps() == [7]
    assert {path.name for path in run.checkpoints.iterdir()} == {
        *strangers,
        "step-000002",
        "step-000003",
        "step-000007",
    }


def test_evaluations_of_a_history_that_a_resume_left_are_not_shown(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "test", "config")
    for step, splits in ((0, ("train", "held_out")), (10, ("held_out",)), (20, ("held_out",)), (10, ("held_out",))):
        for split in splits:
            run.append_evaluation(step, split, Evaluation(step / 100, {}, 2, 0))
    shown = [(row["step"], row["split"]) for row in OpenRun(run).evaluations()]
    assert shown == [(0, "train"), (0, "held_out"), (10, "held_out")]


def test_a_checkpoint_that_a_kill_left_between_two_names_is_put_back(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "test", "config")
    for step in (1, 2):
        written = run.begin_checkpoint(step)
        (written / "part").write_text(str(step))
        run.finish_checkpoint(written, step, keep=2)
    run.checkpoint(2).rename(run.checkpoint(2).with_name("step-000002.replaced"))
    run.sweep()
    assert run.checkpoint_steps() == [1, 2]
    assert (run.checkpoint(2) / "part").read_text() == "2"


def test_a_plan_adds_up() -> None:
    config = load_recipe(ROOT / "deploy" / "recipes" / "cold_start.yaml", ["rollout.actors=3", "learner.world_size=2"])
    rows = {entry.what: entry for entry in plan_rows(config)}
    assert rows["rollout actor (vllm)"].count == 3 and rows["learner rank (FSDP2)"].count == 2
    parameters = policy_parameters(config.policy)
    assert parameters is not None and 0.5e6 < parameters < 1.5e6


def test_a_plan_says_how_groups_are_dealt() -> None:
    overrides = ["batch_groups=16", "group_size=4", "max_group_size=8", "prompts.order=signal"]
    config = load_recipe(ROOT / "deploy" / "recipes" / "cold_start.yaml", overrides)
    shown = Console(file=io.StringIO(), width=160, record=True)
    shown.print(arithmetic_table(config, PromptPool(tuple(PROMPTS), ())))
    text = shown.export_text()
    assert "16 groups x 4 (2 to 8) completions = 64 completions" in text
    assert "clusters that promise signal first" in text


def test_this_environment_is_whole() -> None:
    assert [check for check in check_packages() if check.problem] == []

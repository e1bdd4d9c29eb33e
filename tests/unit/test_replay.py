"""Rebuilding, explaining and replaying: the same numbers from what was written down alone."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.config.recipe import ConfigError
from deploy.report.explain import explanation
from moments_service.config import BlendConfig, ClusterConfig, MomentsConfig
from moments_service.estimators import RewardBatch
from moments_service.estimators.naming import configured
from moments_service.messages.groups import PolicyMove, Transcript
from moments_service.messages.table import padded
from moments_service.moments import CommittedRewards
from moments_service.offline.explain import GroupNotFoundError, explain
from moments_service.offline.logs import LogError, parse_groups
from moments_service.offline.rebuild import differing_arrays, rebuild
from moments_service.offline.replay import ReplaySummary, estimator_label, replay, with_clusters
from moments_service.service import MomentsService
from tests.unit.test_moments_service import CONFIG, EMBEDDINGS, PROMPTS, group, ids

pytestmark = pytest.mark.unit

TEXT = Transcript("2+2=", ("[b]4",) * 4)
PARTS = ({"[i]right": 0.75, "form": 0.25}, None, None, None)


async def a_run(directory: Path, config: MomentsConfig = CONFIG, then: MomentsConfig | None = None) -> MomentsService:
    """Three steps in incarnation 0, then a resume from after the second and two more steps.

    then: what the resume is configured with, if not the same.
    """
    service = MomentsService(config, directory, seed=0)
    await service.fit_clusters(PROMPTS)
    generator = np.random.default_rng(0)

    async def step(number: int) -> None:
        for sequence in range(4 * number, 4 * number + 4):
            rewards = (*generator.integers(0, 2, 3).astype(float).tolist(), None)[sequence % 2 :]
            parts = PARTS[: len(rewards)]
            await service.submit(group(sequence, rewards, where=sequence % 3, parts=parts), "p", TEXT)
        await service.draw(number, ids(*range(4 * number, 4 * number + 3)))
        await service.mark_lost((group(4 * number + 3).group_id,))
        await service.commit(number, number + 1, PolicyMove(0.01 * number, 0.1))

    snapshot = directory / "snapshot"
    snapshot.mkdir()
    for number in range(3):
        await step(number)
        if number == 1:
            await service.snapshot(snapshot)
    await service.close()
    service = MomentsService(then or config, directory, seed=0, incarnation=1, snapshot=snapshot)
    await service.fit_clusters(PROMPTS)
    for number in (2, 3):
        await step(number)
    return service


@pytest.mark.parametrize("spec", ["bv_blend", "bv_blend:paper", "bv_blend:eb:kl_half_life=0.02"])
async def test_the_ledger_alone_makes_the_same_state_bit_for_bit(tmp_path: Path, spec: str) -> None:
    config = configured(CONFIG, spec)
    service = await a_run(tmp_path, config)
    rebuilt = rebuild(config, tmp_path).state
    assert rebuilt is not None
    snapshot = tmp_path / "end"
    snapshot.mkdir()
    await service.snapshot(snapshot)
    await service.close()
    from moments_service.state import MomentsState

    held = MomentsState(config, len(EMBEDDINGS))
    held.load(snapshot)
    assert held.last_step == rebuilt.last_step == 3
    for name, array in held.arrays().items():
        np.testing.assert_array_equal(rebuilt.arrays()[name], array)


async def test_an_explanation_recomputes_what_the_learner_was_given(tmp_path: Path) -> None:
    service = await a_run(tmp_path)
    await service.close()
    for sequence in (0, 5, 12):
        (found,) = explain(CONFIG, tmp_path, group(sequence).group_id)
        assert found.recorded is not None and found.recomputed == found.recorded
        assert found.grpo is not None and found.past is not None
        assert found.parts == PARTS[: len(found.group.rewards)]
        assert found.texts == TEXT
        with (console := Console(width=200, file=StringIO())).capture() as shown:
            console.print(explanation(found, "bv_blend"))
        assert "[i]right 0.75" in shown.get() and "[b]4" in shown.get() and "shaping" not in shown.get()
        with console.capture() as shown:
            console.print(explanation(found, "bv_blend", ["kimi", "unlikeliness"]))
        assert "shaping by kimi and unlikeliness" in shown.get()
    # Step 2 was done twice: once past the checkpoint, once again after the resume.
    twice = explain(CONFIG, tmp_path, group(8).group_id)
    assert [found.incarnation for found in twice] == [0, 1]
    assert all(found.recomputed == found.recorded for found in twice)
    (lost,) = explain(CONFIG, tmp_path, group(3).group_id)
    assert lost.step == 0 and lost.recorded is None
    with pytest.raises(GroupNotFoundError, match="nobody:0:0:0"):
        explain(CONFIG, tmp_path, "nobody:0:0:0")


async def test_each_start_of_a_run_is_explained_by_what_it_was_configured_with(tmp_path: Path) -> None:
    """A resume with `--set` or an edited config.yaml: both sides of it are honest."""
    then = configured(CONFIG, "bv_blend:retention=0.5:temperature=3")
    service = await a_run(tmp_path, then=then)
    snapshot = tmp_path / "end"
    snapshot.mkdir()
    await service.snapshot(snapshot)
    await service.close()
    for asked_with in (CONFIG, then):
        for sequence, config in ((0, CONFIG), (5, CONFIG), (8, CONFIG), (12, then)):
            found = explain(asked_with, tmp_path, group(sequence).group_id)
            assert found[0].config == config
            assert all(one.recorded is not None and one.recomputed == one.recorded for one in found)
        rebuilt = rebuild(asked_with, tmp_path).state
        assert rebuilt is not None and differing_arrays(rebuilt, snapshot) == []


def log_lines(**changes: Any) -> list[str]:
    generator = np.random.default_rng(1)
    lines = []
    for step in range(4):
        for i in range(5):
            rewards: list[Any] = generator.integers(0, 2, 2 + i % 3).tolist()
            if i == 3:
                rewards[0] = None
            lines.append({"step": step, "group": f"{step}-{i}", "cluster": 7 * (i % 2), "rewards": rewards, **changes})
    return [json.dumps(line) for line in lines]


@pytest.mark.parametrize("variant", ["safe", "paper", "eb"])
def test_a_replay_is_what_training_would_have_done(variant: Any) -> None:
    config = MomentsConfig(estimator=BlendConfig(variant=variant))
    summary = ReplaySummary()
    found = list(replay(parse_groups(log_lines(), "log").groups, config, summary))
    moments, estimate = config.create_moments(2), config.blend.create()
    expected = []
    for step in range(4):
        batch = [json.loads(line) for line in log_lines() if json.loads(line)["step"] == step]
        clusters = np.array([row["cluster"] // 7 for row in batch])
        rewards = padded([row["rewards"] for row in batch], 4, np.nan)
        own = estimate(RewardBatch(rewards, np.ones_like(rewards), ("",) * 5, moments.history(clusters)))
        expected += own.values.tolist()
        moments.fold(CommittedRewards(clusters, rewards, ("",) * 5, step + 1))
    for row, values in zip(found, expected, strict=True):
        mine = [np.nan if value is None else value for value in row["advantages"]]
        np.testing.assert_array_equal(mine, values[: len(mine)])
        assert row["cluster"] in (0, 7) and row["estimator"] == estimator_label(config)
    signal = [any(value is not None and abs(value) > 1e-6 for value in row["advantages"]) for row in found]
    wasted = [_uniform(json.loads(line)["rewards"]) for line in log_lines()]
    assert (summary.groups, summary.with_signal) == (20, sum(signal))
    assert summary.rescued == sum(own and other for own, other in zip(signal, wasted, strict=True)) > 0


def _uniform(rewards: list[float | None]) -> bool:
    """Whether GRPO learns nothing from a group of several; one reward that errors left has nothing to be compared with."""
    return len({reward for reward in rewards if reward is not None}) == 1


def test_a_reward_that_no_cluster_can_remember_is_refused_with_its_line() -> None:
    lines = [
        '{"step": 0, "group": "a", "cluster": 0, "rewards": [1]}',
        '{"step": 0, "group": "b", "cluster": 0, "rewards": [1e300]}',
    ]
    with pytest.raises(LogError, match=r"log: line 2: reward 1e\+300 of completion 0 is beyond"):
        parse_groups(lines, "log")


def test_prompts_of_a_log_become_clusters(tmp_path: Path) -> None:
    config = MomentsConfig(clusters=ClusterConfig(count=2, cache_dir=str(tmp_path)))
    texts = ["What is 3 + 4?", "What is 9 + 1?", "Spell 'house' backwards.", "Spell 'garden' backwards."]
    lines = [json.dumps({"step": 0, "group": str(i), "prompt": t, "rewards": [0, 1]}) for i, t in enumerate(texts)]
    clusters = [row.cluster for row in with_clusters(parse_groups(lines, "log").groups, config)]
    assert clusters[0] == clusters[1] != clusters[2] == clusters[3]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2: Invalid JSON"),
        ("[1]", "line 2: Input should be an object"),
        ('{"step": 0, "group": "g", "cluster": 1}', "line 2: rewards: Field required"),
        ('{"step": 0, "group": "g", "rewards": [1]}', "line 2: give either a prompt or a cluster"),
        (
            '{"step": 0, "group": "g", "cluster": 1, "rewards": [1, "0"]}',
            "line 2: rewards.1.float: Input should be a valid number",
        ),
        (
            '{"step": 0, "group": "g", "cluster": 1, "rewards": [NaN]}',
            "line 2: rewards.0.float: Input should be a finite number",
        ),
        (
            '{"step": 0, "group": "g", "cluster": 1, "rewards": [1], "lengths": [1, 2]}',
            "line 2: there are 2 lengths of 1 completions",
        ),
        ('{"step": 0, "group": "g", "prompt": "2+2", "rewards": [1]}', "some lines give a prompt and others a cluster"),
    ],
)
def test_a_bad_line_is_named(line: str, problem: str) -> None:
    good = '{"step": 0, "group": "a", "cluster": 1, "rewards": [1, 0]}'
    with pytest.raises(LogError, match=problem.replace("[", r"\[").replace("+", r"\+")):
        with_clusters(parse_groups([good, line], "log").groups, CONFIG)


def test_the_command_prints_rows_on_stdout_and_the_summary_on_stderr(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(log_lines()))
    done = CliRunner().invoke(
        app, ["replay", str(log), "--estimator", "bv_blend:eb,grpo", "--set", "estimator.prior=[2,2]"]
    )
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["estimator"] for row in rows] == ["bv_blend:eb"] * 20 + ["grpo"] * 20
    assert set(rows[0]) == {"step", "group", "estimator", "cluster", "advantages", "baseline", "scale", "weight"}
    assert "signal" in done.stderr and "advantage" in done.stderr


def test_the_command_names_what_an_estimator_misses_in_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 0, "group": "a", "cluster": 1, "rewards": [1, 1]}')
    done = CliRunner().invoke(app, ["replay", str(log), "--estimator", "rl_zvp"])
    assert isinstance(done.exception, ConfigError)
    assert "rl_zvp needs surprisals" in str(done.exception) and "a log of rewards does not say it" in str(
        done.exception
    )


def test_the_command_warns_of_advantages_that_nothing_bounds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 0, "group": "a", "cluster": 1, "rewards": [1, -1, null]}')
    for estimators, warned in (("bv_blend,grpo", False), ("bv_blend:paper,grpo", True)):
        assert CliRunner().invoke(app, ["replay", str(log), "--estimator", estimators]).exit_code == 0
        assert ("2e+08 for rewards from -1 to 1" in caplog.text) is warned


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("bv_bland", "did you mean bv_blend"),
        ("bv_blend:temprature=1", "did you mean temperature"),
        ("bv_blend:save", "variant"),
        ("grpo:fast", "write options of grpo as KEY=VALUE"),
        ("grpo:fast=1", "grpo has no option 'fast'"),
    ],
)
def test_a_wrong_estimator_is_refused(spec: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        configured(CONFIG, spec)

"""Advice from a log: what it concludes of logs whose truth is known, from every kind of log, and what it says of bad ones."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from deploy.cli.ending import exit_code
from deploy.cli.main import app
from deploy.config.models import RunConfig
from deploy.report.advice import advice_at_the_end, advice_sentences
from deploy.rundir.layout import RunDirectory
from moments_service.config import MomentsConfig
from moments_service.estimators.naming import configured
from moments_service.offline.advice import Advice, advise
from moments_service.offline.logged_rewards import LoggedRewards
from moments_service.offline.logs import LogError
from moments_service.offline.population import Population
from tests.made_runs import MadeRun
from tests.unit.test_logs import trl_table, verl_line
from tests.unit.test_variance_components import drawn

pytestmark = pytest.mark.unit


def mixed(rho: float) -> Population:
    """Four clusters of quite different difficulty."""
    mean = np.array([0.85, 0.5, 0.2, 0.05])
    variance = mean * (1 - mean)
    return Population(np.full(4, 0.25), mean, rho * variance, (1 - rho) * variance, (0.0, 1.0))


def quick(log: LoggedRewards, config: MomentsConfig | None = None) -> Advice:
    return advise(log, config or MomentsConfig(), sizes=(1, 8), chains=3)


def test_where_prompts_of_a_cluster_are_alike_history_helps_and_groups_can_be_small() -> None:
    found = quick(drawn(0, 1500, 2, mixed(0.05)))
    assert found.history_helps and found.reasons[0].startswith("History helps: ")
    assert found.group_size == 1 and found.estimator not in ("grpo", "rloo", "batch mean")
    assert found.rho.low <= 0.05 <= found.rho.high
    assert found.explained.value > 0.8


def test_where_prompts_of_a_cluster_differ_history_does_not_help_large_groups() -> None:
    found = quick(drawn(0, 600, 8, mixed(0.7)))
    assert not found.history_helps and found.reasons[0].startswith("History will not help you here: ")
    assert found.group_size == 8 and found.estimator_at_own_size in ("hierarchical", "rloo")


def test_clusters_that_tell_nothing_are_named_and_sources_that_tell_more_advised() -> None:
    log = drawn(1, 1500, 4, mixed(0.1))
    shuffled = replace(log, clusters=np.random.default_rng(0).permutation(log.clusters), sources=log.clusters)
    found = quick(shuffled)
    sentence = next(reason for reason in found.reasons if "clusters explain" in reason)
    assert "no more than chance" in sentence and "cluster by source" in sentence
    assert found.explained_by_source is not None and found.explained_by_source.value > 0.7
    assert quick(log).explained_by_source is None


def test_prompts_that_come_again_are_told_by_their_own_past() -> None:
    found = quick(drawn(2, 1200, 4, replace(mixed(0.6), pool=200)))
    assert any("A prompt comes 6.0 times, and its own last visit tells" in reason for reason in found.reasons)
    assert found.persistence.value > 0.8


def test_rewards_of_any_range_give_the_same_advice_of_estimators_that_know_no_range() -> None:
    log = drawn(3, 500, 4, mixed(0.4))
    near = quick(log)
    far = quick(replace(log, rewards=100.0 * log.rewards + 5.0))
    assert near.table is not None and far.table is not None
    for name in ("grpo", "rloo", "batch mean"):
        assert far.table.of(name, 8).value == pytest.approx(near.table.of(name, 8).value, rel=1e-3)
    assert far.within.value == pytest.approx(1e4 * near.within.value)
    assert far.rho.value == pytest.approx(near.rho.value)


def test_the_runs_own_estimator_takes_part() -> None:
    config = configured(MomentsConfig(), "ebpo")
    found = quick(drawn(4, 400, 2, mixed(0.4)), config)
    assert found.table is not None and "ebpo" in found.table.estimators and 0 < found.table.of("ebpo", 2).value < 1


def test_the_same_log_gives_the_same_advice_and_it_is_strict_json() -> None:
    log = drawn(5, 200, 2, mixed(0.4))
    first, second = (json.dumps(quick(log).as_json(), allow_nan=False) for _ in range(2))
    assert first == second
    cell = json.loads(first)["table"][0]
    assert set(cell) == {"estimator", "group_size", "value", "margin"}


def test_rewards_that_are_all_equal_have_no_signal_to_advise_on() -> None:
    log = drawn(6, 100, 4, mixed(0.4))
    found = quick(replace(log, rewards=np.zeros_like(log.rewards)))
    assert found.table is None and found.estimator is None and "the same reward" in found.reasons[0]
    json.dumps(found.as_json(), allow_nan=False)


def test_single_completions_of_fresh_prompts_are_refused() -> None:
    with pytest.raises(LogError, match="one completion a group, and no prompt twice"):
        quick(drawn(7, 100, 1, mixed(0.4)))


def call(*arguments: object) -> tuple[int, str, str]:
    """Exit code, what is on stdout, what is said of an error."""
    done = CliRunner().invoke(app, ["advise", *map(str, arguments)], env={"COLUMNS": "200"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return exit_code(done.exception), done.stdout, str(done.exception)
    return done.exit_code, done.stdout, done.stderr


def lines(path: Path, log: LoggedRewards) -> Path:
    rows = zip(log.steps.tolist(), log.clusters.tolist(), log.rewards.tolist(), strict=True)
    path.write_text(
        "\n".join(
            json.dumps({"step": step, "group": str(place), "cluster": cluster, "rewards": rewards})
            for place, (step, cluster, rewards) in enumerate(rows)
        )
    )
    return path


def test_the_command_prints_one_screen(tmp_path: Path) -> None:
    code, screen, _ = call(lines(tmp_path / "log.jsonl", drawn(8, 300, 2, mixed(0.1))))
    assert code == 0 and len(screen.splitlines()) <= 40
    for expected in (
        "300 groups of 2 in 19 steps",
        "rho ",
        "rewards are equal",
        "G = 2 (log)",
        "Advice: ",
        "History helps",
    ):
        assert expected in screen


def test_logs_of_trainers_and_runs_are_read_alike(tmp_path: Path) -> None:
    labels = "clusters={by: embedding, count: 2, cache_dir: " + str(tmp_path / "cache") + "}"
    for step in range(4):
        trl_table(tmp_path, step, [1.0, 0.0, 1.0, 1.0])
    (tmp_path / "verl").mkdir()
    text = "\n".join(
        verl_line(0, f"{number} + 1", float(number % 3 == place)) for number in range(8) for place in range(2)
    )
    (tmp_path / "verl" / "0.jsonl").write_text(text)
    for log in (tmp_path, tmp_path / "verl"):
        code, printed, problem = call(log, "--json", "--set", labels)
        assert code == 0, problem
        found = json.loads(printed, parse_constant=lambda name: pytest.fail(name))
        assert found["log"]["prompts"] is not None and found["table"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, RunConfig]:
    async def make() -> MadeRun:
        made = await MadeRun(tmp_path_factory.mktemp("runs"), groups=16).start()
        await made.steps(12)
        await made.close()
        return made

    made = asyncio.run(make())
    return made.directory, made.config


def test_a_runs_ledger_is_a_log(run: tuple[RunDirectory, RunConfig]) -> None:
    directory, config = run
    code, printed, problem = call(directory.path, "--json")
    assert code == 0, problem
    found = json.loads(printed)
    assert found["log"]["groups"] == 12 * 16 and found["log"]["steps"] == 12 and found["log"]["group_size"] == 2
    whole, last = (LoggedRewards.of_ledger(directory.moments, limit) for limit in (10**6, 50))
    assert last.steps.tolist() == whole.steps[-len(last.steps) :].tolist() and (np.diff(whole.steps) >= 0).all()
    at_the_end = advice_at_the_end(directory, config)
    assert at_the_end is not None and {cell["group_size"] for cell in at_the_end["table"]} == {2}
    (sentence,) = advice_sentences(at_the_end)
    assert "istory" in sentence and "groups of 2" in sentence


def test_what_cannot_be_advised_on_is_said_in_a_sentence(tmp_path: Path, run: tuple[RunDirectory, RunConfig]) -> None:
    (tmp_path / "bad.jsonl").write_text('{"step": 0, "group": "a", "cluster": 1, "rewards": [1, "0"]}')
    (tmp_path / "empty.jsonl").write_text("")
    one_each = lines(tmp_path / "one.jsonl", drawn(7, 100, 1, mixed(0.4)))
    empty_run = RunDirectory(tmp_path / "run")
    empty_run.path.mkdir()
    empty_run.config.write_bytes(run[0].config.read_bytes())
    for path, problem in (
        (tmp_path / "none.jsonl", "no log there"),
        (tmp_path / "bad.jsonl", "line 1: rewards"),
        (tmp_path / "empty.jsonl", "the log is empty"),
        (one_each, "one completion a group"),
        (empty_run.path, "no group is in the ledger of that run yet"),
    ):
        code, printed, said = call(path)
        assert code == 2 and printed == "" and problem in said and "\n" not in said.strip()
    assert advice_at_the_end(empty_run, run[1]) is None and advice_sentences(None) == []

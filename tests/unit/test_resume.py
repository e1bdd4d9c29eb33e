"""A run goes on from what is whole and its own, or says which file is not, before anything is started."""

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.config.recipe import ConfigError, dump_config, load_recipe
from deploy.rundir.evaluation import Evaluation
from deploy.rundir.layout import RunDirectory
from deploy.rundir.open_run import OpenRun
from deploy.rundir.resume import changed_since, has_unrecorded_starts, refuse_what_cannot_go_on, resume_point
from deploy.rundir.saved_moments import newest_snapshot
from moments_service.clusters.labels import LabelClusters
from moments_service.clusters.versions import ClusterVersions
from moments_service.durable import seal_directory, write_json
from moments_service.health import Alarm
from moments_service.ledger import LedgerDamagedError, LedgerReader
from moments_service.ledger.schema import TransactionHash
from moments_service.service import MomentsService
from tests.made_runs import MadeRun

pytestmark = pytest.mark.unit


async def checkpoint(made: MadeRun, incarnation: int = 0) -> None:
    """As a run writes it; a file stands for the learner's part."""
    partial = made.directory.begin_checkpoint(made.step)
    await made.snapshot(partial / "moments")
    (partial / "learner").mkdir()
    (partial / "learner" / "weights").write_bytes(bytes(range(256)) * 16)
    state = {"step": made.step, "incarnation": incarnation, "feed": {}, "run": made.directory.identity()}
    write_json(partial / "run.json", state)
    made.directory.finish_checkpoint(partial, made.step, keep=9)


async def a_run(runs: Path, name: str = "mine", **made_as: Any) -> MadeRun:
    """Six steps; checkpoints after two, four and six."""
    made = MadeRun(runs, name, groups=4, **made_as)
    made.directory.name_tag.write_text(name)
    await made.start()
    for _ in range(3):
        await made.steps(2)
        await checkpoint(made)
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run whose driver was killed: its ledger has a log beside it."""

    async def make() -> Path:
        made = await a_run(tmp_path_factory.mktemp("runs"))
        left = made.directory.path.with_name("killed")
        await asyncio.to_thread(shutil.copytree, made.directory.path, left)
        await made.close()
        return left

    return asyncio.run(make())


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> RunDirectory:
    return RunDirectory(Path(shutil.copytree(whole, tmp_path / "run")))


def test_it_goes_on_from_the_newest_or_from_the_one_that_is_named(run: RunDirectory) -> None:
    point = resume_point(run)
    assert point is not None and point.step == 6 and point.checkpoint == run.checkpoint(6)
    point = resume_point(run, from_step=4)
    assert point is not None and point.step == 4
    with pytest.raises(ConfigError, match=r"--from-step 5: .* has no such checkpoint; there are 2, 4, 6"):
        resume_point(run, from_step=5)
    (run.checkpoints / "step-000006.bak").mkdir()
    (run.checkpoints / "notes").write_text("mine")
    assert (again := resume_point(run)) is not None and again.step == 6
    shutil.rmtree(run.checkpoints)
    assert resume_point(run) is None


def flip(path: Path, place: int = -1, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    path.write_bytes(data)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES: dict[str, Callable[[Path], object]] = {
    r"learner/weights is damaged": lambda at: flip(at / "learner" / "weights", 1000, 64),
    r"learner/weights is missing": lambda at: (at / "learner" / "weights").unlink(),
    r"moments/moments.safetensors is damaged": lambda at: flip(at / "moments" / "moments.safetensors"),
    r"moments/codebook.safetensors is damaged": lambda at: zero(at / "moments" / "codebook.safetensors"),
    r"run.json is damaged": lambda at: (at / "run.json").write_bytes(b""),
    r"checksums.json: ": lambda at: (at / "checksums.json").write_bytes(b""),
    r"learner/more does not belong there": lambda at: (at / "learner" / "more").write_bytes(b"1"),
}


@pytest.mark.parametrize("problem", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_next_good_one_offered(run: RunDirectory, problem: str) -> None:
    DAMAGES[problem](run.checkpoint(6))
    with pytest.raises(
        ConfigError, match=rf"step-000006/{problem}.*that of step 4: .*--from-step 4.*--resume-from-older"
    ):
        resume_point(run)
    said: list[str] = []
    point = resume_point(run, older=True, note=said.append)
    assert point is not None and point.step == 4
    assert said[0].endswith("Going on from step 4 instead")
    for step in (2, 4):
        DAMAGES[problem](run.checkpoint(step))
    with pytest.raises(ConfigError, match="No older checkpoint is whole either"):
        resume_point(run, older=True)


def sealed_again(checkpoint: Path) -> None:
    (checkpoint / "checksums.json").unlink()
    seal_directory(checkpoint)


def foreign(run: RunDirectory, other: Path) -> None:
    shutil.rmtree(run.checkpoint(6))
    shutil.copytree(other / "checkpoints" / "step-000006", run.checkpoint(6))


def moments_of_another(run: RunDirectory, other: Path) -> None:
    shutil.rmtree(run.checkpoint(6) / "moments")
    shutil.copytree(other / "checkpoints" / "step-000006" / "moments", run.checkpoint(6) / "moments")
    sealed_again(run.checkpoint(6))


def learner_of_another(run: RunDirectory, other: Path) -> None:
    (run.checkpoint(6) / "learner" / "weights").write_bytes(b"other")


def renamed(run: RunDirectory, _: Path) -> None:
    shutil.rmtree(run.checkpoint(6))
    shutil.copytree(run.checkpoint(4), run.checkpoint(6))


def of_another_step(run: RunDirectory, _: Path) -> None:
    shutil.rmtree(run.checkpoint(6) / "moments")
    shutil.copytree(run.checkpoint(4) / "moments", run.checkpoint(6) / "moments")
    sealed_again(run.checkpoint(6))


FOREIGN = {
    "is a checkpoint of another run (theirs, this one is mine)": foreign,
    "is the ledger of another run": moments_of_another,
    "learner/weights is damaged": learner_of_another,
    "holds step 4: it was renamed or copied there": renamed,
    "its moments are of step 4": of_another_step,
}


@pytest.mark.parametrize("problem", FOREIGN)
async def test_what_belongs_to_another_run_or_step_is_refused(run: RunDirectory, tmp_path: Path, problem: str) -> None:
    other = await a_run(tmp_path / "others", "theirs", seed=1)
    await other.close()
    FOREIGN[problem](run, other.directory.path)
    with pytest.raises(ConfigError) as refused:
        resume_point(run)
    assert problem in str(refused.value) and "--from-step 4" in str(refused.value)


def lose_all(moments: Path) -> None:
    for path in moments.glob("ledger-*"):
        path.unlink()


def lose_end(moments: Path) -> None:
    path = max(moments.glob("ledger-*.sqlite"))
    with sqlite3.connect(path) as connection:
        ((last,),) = connection.execute("SELECT MAX(seal) - 1 FROM seals")
        for table in ("groups", "transcripts", "losses", "folds", "commits", "incarnations", "configs", "seals"):
            connection.execute(f"DELETE FROM {table} WHERE seal >= ?", (last,))
    connection.close()


LOSSES: dict[str, Callable[[Path], object]] = {
    r"part \d of the ledger is missing": lose_all,
    r"ledger-\d+.sqlite ends with transaction \d+, and number \d+ was on the disk": lose_end,
    r"ledger-\d+.sqlite(-wal is lost| is damaged)": lambda at: max(at.glob("*-wal")).unlink(),
}


@pytest.mark.parametrize("problem", LOSSES)
def test_a_ledger_that_lost_its_end_is_refused_unless_it_may(run: RunDirectory, problem: str) -> None:
    LOSSES[problem](run.moments)
    with pytest.raises(ConfigError, match=problem):
        resume_point(run)


def test_lost_groups_can_be_given_up(run: RunDirectory) -> None:
    lose_all(run.moments)
    with pytest.raises(ConfigError, match="or add --without-lost-groups"):
        resume_point(run)
    point = resume_point(run, without_lost_groups=True)
    assert point is not None and point.step == 6 and point.without_lost_groups


def test_a_damaged_ledger_names_its_file(run: RunDirectory) -> None:
    path = min(run.moments.glob("ledger-*.sqlite"))
    path.chmod(0o644)
    zero(path)
    with pytest.raises(ConfigError, match=r"ledger-000000\.sqlite is damaged: .*restore the file from a copy"):
        resume_point(run)


def test_fewer_steps_and_an_estimator_without_its_memory_are_refused(run: RunDirectory) -> None:
    point = resume_point(run)
    assert point is not None
    refuse_what_cannot_go_on(load_recipe(run.config), run, point)
    with pytest.raises(ConfigError, match=r"steps: 5 is less than the 6 that .*step-000006 has behind it"):
        refuse_what_cannot_go_on(load_recipe(run.config, ["steps=5"]), run, point)
    with pytest.raises(ConfigError, match=r"moments: .*spo needs a memory of its own"):
        refuse_what_cannot_go_on(load_recipe(run.config, ["moments.estimator=spo"]), run, point)


def test_what_is_configured_otherwise_than_before_is_named(run: RunDirectory) -> None:
    assert changed_since(run, load_recipe(run.config)) == []
    with sqlite3.connect(min(run.moments.glob("ledger-*.sqlite"))) as connection:
        ((text,),) = connection.execute("SELECT config FROM configs")
    assert json.loads(text)["moments"]["estimator"]["kind"] == "bv_blend"
    now = load_recipe(
        run.config, ["moments.estimator.temperature=0.5", "learner.optimizer.lr=1e-6", "prompts.sources.1.limit=70"]
    )
    before = load_recipe(run.config).learner.optimizer.lr
    assert changed_since(run, now) == [
        f"learner.optimizer.lr: {before} -> 1e-06",
        "moments.estimator.temperature: 0.1 -> 0.5",
        "prompts.sources.1.limit: 60 -> 70",
    ]


def configured(run: RunDirectory, change: Callable[[dict[str, Any]], object]) -> None:
    """The ledger says of its start what another version would have written."""
    with sqlite3.connect(min(run.moments.glob("ledger-*.sqlite"))) as connection:
        ((text,),) = connection.execute("SELECT config FROM configs")
        change(said := json.loads(text))
        connection.execute("UPDATE configs SET config = ?", (json.dumps(said),))
    connection.close()


def test_keys_that_are_newer_than_the_last_start_are_no_change(run: RunDirectory) -> None:
    configured(run, lambda said: (said.pop("stall_timeout_s"), said["moments"].pop("health")))
    assert changed_since(run, load_recipe(run.config)) == []
    assert changed_since(run, load_recipe(run.config, ["stall_timeout_s=7"])) == ["stall_timeout_s: 900.0 -> 7.0"]


def test_keys_that_are_no_more_are_named_and_newer_ones_beside_them_are_not(run: RunDirectory) -> None:
    configured(run, lambda said: (said.pop("stall_timeout_s"), said["learner"].update(former=1)))
    now = load_recipe(run.config, ["learner.optimizer.lr=1e-6"])
    before = load_recipe(run.config).learner.optimizer.lr
    assert changed_since(run, now) == ["learner.former: 1 -> nothing", f"learner.optimizer.lr: {before} -> 1e-06"]


def test_a_run_that_an_older_version_began_goes_on_and_its_config_stays(run: RunDirectory) -> None:
    """Its ledger has no table of configurations."""
    assert not has_unrecorded_starts(run)
    with sqlite3.connect(min(run.moments.glob("ledger-*.sqlite"))) as connection:
        (row,) = connection.execute("SELECT incarnation, after_step FROM incarnations").fetchall()
        ((seal,),) = connection.execute("SELECT seal FROM incarnations").fetchall()
        connection.execute("DROP TABLE configs")
        hashed = TransactionHash()
        hashed.add("incarnations", [row])
        connection.execute(
            "UPDATE seals SET number_of_rows = ?, checksum = ?, texts = ? WHERE seal = ?", (*hashed.seal(), seal)
        )
    connection.close()
    point = resume_point(run)
    assert point is not None and point.step == 6 and point.prompts is None
    now = load_recipe(run.config, ["moments.estimator.temperature=0.5"])
    assert has_unrecorded_starts(run) and changed_since(run, now) == ["moments.estimator.temperature: 0.1 -> 0.5"]

    async def go_on() -> None:
        await MomentsService(
            now.moments, run.moments, 0, 1, point.snapshot, run_config=now.model_dump(mode="json")
        ).close()

    asyncio.run(go_on())
    with LedgerReader(run.moments) as ledger:
        assert list(ledger.configs()) == [1] and ledger.steps(1) == list(range(6))
    assert has_unrecorded_starts(run) and changed_since(run, now) == []


def test_a_checkpoint_of_a_left_history_is_set_aside_and_not_taken_again(run: RunDirectory) -> None:
    aside = run.set_aside_after(2)
    assert [path.name for path in aside] == ["left-000004-1", "left-000006-1"]
    assert (aside[0] / "run.json").exists()
    assert run.checkpoint_steps() == [2]
    assert (point := resume_point(run)) is not None and point.step == 2


def test_alarms_and_evaluations_of_a_left_history_are_shown_no_more(run: RunDirectory) -> None:
    for step in (1, 2, 5):
        for cluster in (0, 1):
            run.append_alarm(step, Alarm("reward fell", cluster, 0.8, 0.1))
    for step in (0, 2, 4):
        run.append_evaluation(step, "held_out", Evaluation(pass_at_1=step / 10, prompts=4, errors=0, sources={}))
    looking = OpenRun(run)
    assert len(looking.alarms()) == 6 and len(looking.evaluations()) == 3
    run.set_aside_after(2)
    assert [(row["step"], row["cluster"]) for row in looking.alarms()] == [(1, 0), (1, 1)]
    assert [row["step"] for row in looking.evaluations()] == [0, 2]
    run.append_alarm(5, Alarm("many errors", None, 0.1, 0.9))
    before = run.alarms.read_bytes()
    run.set_aside_after(6)  # a resume that leaves nothing
    assert run.alarms.read_bytes() == before
    assert [row["step"] for row in looking.alarms()] == [1, 1, 5]


def test_the_moments_of_a_left_end_are_not_taken_for_the_newest(run: RunDirectory) -> None:
    shutil.copytree(run.checkpoint(6) / "moments", run.final_moments)
    run.append_metrics({"step": 6})
    assert newest_snapshot(run) == run.final_moments
    assert [path.name for path in run.set_aside_after(2)] == ["left-000004-1", "left-000006-1", "left-final-1"]
    assert newest_snapshot(run) == run.checkpoint(2) / "moments"


def test_copies_that_somebody_put_beside_the_files_of_a_run_change_nothing(run: RunDirectory) -> None:
    shutil.copy(min(run.moments.glob("ledger-*.sqlite")), run.moments / "ledger-000000 (copy).sqlite")
    (run.moments / "codebook-old.safetensors").write_bytes(b"")
    point = resume_point(run)
    assert point is not None and point.step == 6
    made = ClusterVersions(run.moments, incarnation=1).record(LabelClusters("source", ("a", "b")), after_step=5)
    assert (run.moments / made.version).exists() and made.version != "codebook-old.safetensors"


def test_a_damaged_page_is_named_by_whoever_reads_it(run: RunDirectory) -> None:
    path = min(run.moments.glob("ledger-*.sqlite"))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages = [page for (page,) in connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'folds'")]
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    data = bytearray(path.read_bytes())
    data[(pages[0] - 1) * size : pages[0] * size] = b"\xff" * size
    path.write_bytes(bytes(data))
    with (
        LedgerReader(run.moments) as reader,
        pytest.raises(LedgerDamagedError, match=r"ledger-000000\.sqlite is damaged"),
    ):
        reader.batch(0, 1)
    with pytest.raises(ConfigError, match=r"ledger-000000\.sqlite is damaged"):
        resume_point(run)


def test_the_command_refuses_before_anything_is_started(run: RunDirectory) -> None:
    flip(run.checkpoint(6) / "learner" / "weights", 1000)
    refused = CliRunner().invoke(app, ["train", "--resume", str(run.path)])
    assert isinstance(refused.exception, ConfigError) and "--from-step 4" in str(refused.exception)
    assert not (run.path / "owner.json").exists()
    refused = CliRunner().invoke(app, ["train", str(run.config), "--from-step", "4"])
    assert isinstance(refused.exception, ConfigError) and "go with --resume" in str(refused.exception)
    assert run.config.read_text() == dump_config(load_recipe(run.config))

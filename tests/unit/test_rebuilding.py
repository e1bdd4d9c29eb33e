"""`bvblend moments rebuild`: the same state from the ledger alone, and what is said where that cannot be."""

import asyncio
import json
import sqlite3
from dataclasses import asdict
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.config.recipe import ConfigError, load_recipe
from deploy.run.launch import read_pool
from deploy.run.prompt_set import prompt_set
from deploy.run.warm_start import read_warm_start
from deploy.rundir.layout import RunDirectory
from moments_service.ledger import LedgerLimits
from moments_service.ledger.parts import part_path, part_paths
from moments_service.offline.portable import PortableMoments
from moments_service.service import MomentsService
from moments_service.state import read_origin
from tests.unit.test_ledger_parts import TEXT, change
from tests.unit.test_moments_cli import call, made_run, recipe
from tests.unit.test_moments_service import group

pytestmark = pytest.mark.unit

__all__ = ["recipe"]


@pytest.fixture
def run(recipe: Path) -> RunDirectory:
    return made_run(recipe, [(1.0, 1.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0)])


def resume(run: RunDirectory, steps: range, save_after: int, lost: bool = False) -> None:
    """A second start of the run, from its newest checkpoint, with many parts; it is killed after its last commit."""
    config = load_recipe(run.config)

    async def train() -> None:
        snapshot = run.checkpoint(run.checkpoint_steps()[-1]) / "moments"
        limits = LedgerLimits(part_bytes=48 * 2**10, texts_bytes=160 * 2**10)
        service = MomentsService(config.moments, run.moments, 0, 1, snapshot, limits, without_lost_groups=lost)
        await service.fit_clusters(prompt_set(config, read_pool(config).train))
        for step in steps:
            for number in range(3):
                scored = group(3 * step + number, (1.0, float(step % 2)), source="gcd")
                await service.submit(scored, payload="p", transcript=TEXT)
            # The third waits for the next batch, which may stand in the next part.
            await service.draw(step, [f"prompt{3 * step + number}:0:0:0" for number in range(2)])
            await service.commit(step, policy_version=step + 1)
            if step + 1 == save_after:
                (run.checkpoint(save_after) / "moments").mkdir(parents=True)
                await service.snapshot(run.checkpoint(save_after) / "moments")
                (run.checkpoint(save_after) / "run.json").write_text("{}")

    asyncio.run(train())


def test_a_rebuilt_state_is_the_saved_one_bit_for_bit(run: RunDirectory, tmp_path: Path) -> None:
    printed = call("moments", "rebuild", run.path, "--out", tmp_path / "rebuilt")
    assert "transactions in 1 parts of the ledger are whole" in printed
    assert "the same as checkpoints/step-000004/moments, after 4 steps, bit for bit" in printed
    call("moments", "export", run.path, "--out", tmp_path / "exported")
    rebuilt, exported = (PortableMoments.read(tmp_path / name) for name in ("rebuilt", "exported"))
    assert rebuilt.about == exported.about
    assert {name: array.tobytes() for name, array in rebuilt.moments.state().items()} == {
        name: array.tobytes() for name, array in exported.moments.state().items()
    }
    start = read_warm_start(load_recipe(run.config), tmp_path / "rebuilt", None, 1.0)
    assert start is not None and start.portable is not None


def test_any_step_of_any_start_can_be_rebuilt(run: RunDirectory, tmp_path: Path) -> None:
    resume(run, range(4, 24), save_after=9)
    assert len(part_paths(run.moments)) > 3
    printed = call("moments", "rebuild", run.path)
    assert "after 24 steps" in printed and "the same as checkpoints/step-000009/moments, after 9 steps" in printed
    printed = call("moments", "rebuild", run.path, "--step", 4, "--out", tmp_path / "four")
    assert "after 4 steps" in printed and "the same as checkpoints/step-000004/moments" in printed
    assert PortableMoments.read(tmp_path / "four").about.counts.groups == 4
    printed = call("moments", "rebuild", run.path, "--step", 12)
    assert "after 12 steps" in printed and "nothing to compare with: no moments were saved then" in printed


def test_a_snapshot_that_differs_is_named_and_the_command_fails(run: RunDirectory, tmp_path: Path) -> None:
    path = run.checkpoint(4) / "moments" / "moments.safetensors"
    origin, arrays = read_origin(path.parent), load_file(path)
    name = next(name for name in sorted(arrays) if name.startswith("moments/"))
    arrays[name].flat[0] += 1
    save_file(arrays, path, metadata={"origin": json.dumps(asdict(origin))})
    result = CliRunner().invoke(app, ["moments", "rebuild", str(run.path)], env={"COLUMNS": "160"})
    assert result.exit_code == 4
    assert f"NOT the same as checkpoints/step-000004/moments, after 4 steps: {name}" in result.output
    path.write_bytes(b"rubbish")
    assert "cannot be read" in call("moments", "rebuild", run.path)


def test_what_is_missing_is_named_with_the_remedy(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run there \(no config\.yaml in it\)"):
        call("moments", "rebuild", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"--step 7: the ledger in .*moments holds 4 steps"):
        call("moments", "rebuild", run.path, "--step", 7)
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match=r"there exists already; name another"):
        call("moments", "rebuild", run.path, "--out", tmp_path / "there")
    resume(run, range(4, 24), save_after=9)
    # As after the loss of a machine: the mirror has the closed parts, and a later start went on without the last.
    for path in part_paths(run.moments)[2:]:
        path.unlink()
    resume(run, range(9, 12), save_after=0, lost=True)
    with pytest.raises(ConfigError, match=r"has no commits of steps \d+ to 8: a part of it was lost.*restore the part"):
        call("moments", "rebuild", run.path)
    change(part_path(run.moments, 0), "UPDATE commits SET policy_version = 9 WHERE step = 1")
    with pytest.raises(
        ConfigError, match=r"ledger-000000\.sqlite is damaged in transaction \d+: .*the commit of step 1"
    ):
        call("moments", "rebuild", run.path)
    for path in part_paths(run.moments):
        path.unlink()
    with pytest.raises(ConfigError, match=r"no ledger in .*moments"):
        call("moments", "rebuild", run.path)


def test_explain_says_that_texts_were_dropped(run: RunDirectory) -> None:
    resume(run, range(4, 24), save_after=9)
    assert "dropped by the ledger's retention" in call("explain", group(12).group_id, "--run", run.path)
    last = call("explain", group(71).group_id, "--run", run.path)
    assert "retention" not in last and "in no batch yet" in last
    with sqlite3.connect(f"file:{part_path(run.moments, 0)}?mode=ro", uri=True) as connection:
        assert connection.execute("SELECT COUNT(*) FROM transcripts").fetchone() == (0,)

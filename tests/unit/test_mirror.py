"""The mirror: what arrives when, on real fsspec file systems; what happens when uploads fail."""

import asyncio
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from fsspec.implementations.local import LocalFileSystem

from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, load_recipe
from deploy.mirror.mirror import Mirror, mirrored, refuse_unwritable_mirror
from deploy.mirror.store import MirrorStore
from deploy.rundir.layout import RunDirectory
from moments_service.ledger import Ledger, LedgerReader
from moments_service.ledger.parts import part_paths
from moments_service.ledger.seals import check_parts
from moments_service.messages.groups import PolicyMove
from tests.unit.test_config import MINIMAL
from tests.unit.test_ledger import NOTHING, batch, header
from tests.unit.test_ledger_parts import SMALL, add

pytestmark = pytest.mark.unit


class BrokenFileSystem(LocalFileSystem):
    """Fails in the way that it is told to."""

    protocol = "broken"
    fails: Callable[[str], bool] = staticmethod(lambda path: False)

    def put_file(self, path1: str, path2: str, callback: Any = None, **options: Any) -> None:
        path = self._strip_protocol(path2)
        if self.fails(path):
            # Half of it arrives.
            Path(path).write_bytes(Path(path1).read_bytes()[:10])
            raise OSError(f"connection lost: {Path(path).name}")
        super().put_file(path1, path2, callback, **options)


fsspec.register_implementation("broken", BrokenFileSystem, clobber=True)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], bool]], None]:
    return lambda fails: monkeypatch.setattr(BrokenFileSystem, "fails", staticmethod(fails))


@pytest.fixture(params=["file", "memory", "broken"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}://{'' if request.param == 'memory' else tmp_path}/mirror-{uuid.uuid4().hex}"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs", "mine", "name: mine\n")


def config_with(tmp_path: Path, uri: str, **changes: Any) -> RunConfig:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | {"mirror": uri} | changes))
    return load_recipe(path)


def names(uri: str) -> set[str]:
    """What is there, without what is on its way."""
    system, root = fsspec.core.url_to_fs(uri)
    system.invalidate_cache()  # it is not the mirror's own, so that it remembers what stood there when it looked last
    found = {path.removeprefix(root).lstrip("/") for path in system.find(root)}
    return {name for name in found if not name.endswith(".partial")}


def contents(uri: str) -> dict[str, bytes]:
    system, root = fsspec.core.url_to_fs(uri)
    return {name: system.cat_file(f"{root}/{name}") for name in names(uri)}


def local(run: RunDirectory) -> dict[str, bytes]:
    return {str(path.relative_to(run.path)): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def checkpoint(run: RunDirectory, step: int, text: str = "") -> None:
    partial = run.begin_checkpoint(step)
    (partial / "learner").mkdir()
    (partial / "learner" / "shard.distcp").write_text(f"weights {step} {text}")
    (partial / "run.json").write_text(json.dumps({"step": step}))
    run.finish_checkpoint(partial, step, keep=2)


async def until(mirror: Mirror, condition: Callable[[], bool]) -> None:
    """Look and wait until it holds; each wait ends when the mirror has moved."""
    while not condition():
        mirror._moved.clear()
        mirror.look()
        if not condition():
            await asyncio.wait_for(mirror._moved.wait(), 20)


async def write_parts(run: RunDirectory, incarnation: int, first: int, count: int) -> None:
    ledger = Ledger(run.moments, incarnation, first - 1, SMALL)
    for step in range(first, first + count):
        await add(ledger, header(step))
        await ledger.append_commit(batch(step, header(step)), step + 1, PolicyMove(0.5, 0.25), *NOTHING)
    await ledger.close()


async def test_whole_things_go_at_once_and_all_the_rest_at_the_end(run: RunDirectory, uri: str, tmp_path: Path) -> None:
    notes: list[str] = []
    there = f"{uri}/{run.path.name}"
    async with mirrored(config_with(tmp_path, uri), run, notes.append) as mirror:
        assert mirror is not None
        await until(mirror, lambda: "config.yaml" in names(there))
        await write_parts(run, 0, 0, 30)
        run.append_metrics({"step": 0})
        *closed, newest = part_paths(run.moments)
        assert len(closed) > 1
        checkpoint(run, 5)
        await until(mirror, lambda: "metrics.jsonl" in names(there))
        found = names(there)
        assert {f"moments/{path.name}" for path in closed} <= found
        assert f"moments/{newest.name}" not in found
        assert {"checkpoints/step-000005/run.json", "checkpoints/step-000005/learner/shard.distcp"} <= found
        (run.path / "policy").mkdir()
        (run.path / "policy" / "config.json").write_text("{}")
        run.summary.write_text("{}")
    found = contents(there)
    assert found == local(run)
    assert any(there in note for note in notes) and not any("mirror:" in note for note in notes)


async def test_a_run_can_go_on_from_its_mirror(run: RunDirectory, uri: str, tmp_path: Path) -> None:
    config = config_with(tmp_path, uri)
    async with mirrored(config, run, print):
        await write_parts(run, 0, 0, 30)
        checkpoint(run, 5)
    back = tmp_path / "elsewhere" / run.path.name
    for name, data in contents(f"{uri}/{run.path.name}").items():
        (back / name).parent.mkdir(parents=True, exist_ok=True)
        (back / name).write_bytes(data)
    again = RunDirectory(back)
    assert again.checkpoint_steps() == [5]
    async with mirrored(config, again, print):
        await write_parts(again, 1, 30, 30)
    reader = LedgerReader(back / "moments")
    assert [commit.step for part in (0, 1) for commit in reader.commits(part)] == list(range(60))
    reader.close()
    check_parts(part_paths(back / "moments"))
    assert contents(f"{uri}/{run.path.name}") == local(again)


async def test_the_open_part_is_uploaded_with_what_stands_in_its_log(
    run: RunDirectory, uri: str, tmp_path: Path
) -> None:
    ledger = Ledger(run.moments, 0)
    await add(ledger, header(0))
    async with mirrored(config_with(tmp_path, uri), run, print):
        assert ledger.path.with_name(f"{ledger.path.name}-wal").stat().st_size > 0
    found = contents(f"{uri}/{run.path.name}")
    assert not [name for name in found if "-wal" in name or "-shm" in name]
    (copy := tmp_path / "copy").mkdir()
    (copy / ledger.path.name).write_bytes(found[f"moments/{ledger.path.name}"])
    assert [group.sequence for group, _ in LedgerReader(copy).unfolded(0)] == [0]
    await ledger.close()


async def test_what_fails_is_said_and_tried_again(
    run: RunDirectory, tmp_path: Path, breaking: Callable[[Callable[[str], bool]], None]
) -> None:
    uri = f"broken://{tmp_path}/mirror"
    there = f"{uri}/{run.path.name}"
    notes: list[str] = []
    breaking(lambda path: "shard.distcp" in path)
    async with mirrored(config_with(tmp_path, uri), run, notes.append) as mirror:
        assert mirror is not None
        checkpoint(run, 5)
        await until(mirror, lambda: "config.yaml" in names(there) and any("connection lost" in note for note in notes))
        # Never half a checkpoint that looks like a whole one.
        assert "checkpoints/step-000005/run.json" not in names(there)
        breaking(lambda path: False)
        await until(mirror, lambda: "checkpoints/step-000005/run.json" in names(there))
        breaking(lambda path: True)
        run.summary.write_text("{}")
    assert "shard.distcp.partial" in next(note for note in notes if "tried again with the next" in note)
    assert "is not complete; copy" in notes[-1]
    breaking(lambda path: False)
    async with mirrored(config_with(tmp_path, uri), run, notes.append):
        pass
    assert contents(there) == local(run)


async def test_uploads_that_fail_all_the_time_stop_nothing(
    run: RunDirectory, tmp_path: Path, breaking: Callable[[Callable[[str], bool]], None]
) -> None:
    breaking(lambda path: True)
    notes: list[str] = []
    async with mirrored(config_with(tmp_path, f"broken://{tmp_path}/mirror"), run, notes.append) as mirror:
        assert mirror is not None
        await write_parts(run, 0, 0, 10)
        mirror.look()
    assert any("connection lost" in note for note in notes) and "is not complete" in notes[-1]


async def test_the_mirror_keeps_the_checkpoints_that_the_run_keeps(run: RunDirectory, uri: str, tmp_path: Path) -> None:
    there = f"{uri}/{run.path.name}"

    def steps() -> list[int]:
        return sorted({int(name.split("/")[1][5:]) for name in names(there) if name.startswith("checkpoints/")})

    async with mirrored(config_with(tmp_path, uri), run, print) as mirror:
        assert mirror is not None
        for step in (5, 10, 15):
            checkpoint(run, step)
            await until(mirror, lambda step=step: steps()[-1:] == [step] and len(steps()) <= 2)
    assert steps() == [10, 15]
    # Another life of the run writes the same step again: other bytes, the same sizes.
    async with mirrored(config_with(tmp_path, uri), run, print):
        checkpoint(run, 15, "")
        (run.checkpoint(15) / "learner" / "shard.distcp").write_text("WEIGHTS 15 ")
    assert contents(there) == local(run)


async def test_an_upload_that_hangs_can_be_left(
    run: RunDirectory, tmp_path: Path, breaking: Callable[[Callable[[str], bool]], None]
) -> None:
    import threading

    released = threading.Event()
    breaking(lambda path: not released.wait(60))
    for stall, ending in ((0.2, "nothing was uploaded for 0.2 s (stall_timeout_s)"), (600.0, "is left as it is")):
        notes: list[str] = []
        config = config_with(tmp_path, f"broken://{tmp_path}/mirror", stall_timeout_s=stall)
        async with mirrored(config, run, notes.append) as mirror:
            assert mirror is not None
            mirror.give_up()  # while the run goes on that means nothing
            if stall > 1:
                asyncio.get_running_loop().call_later(0.2, mirror.give_up)
        assert ending in notes[-1]
    released.set()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3:/bucket/runs", "mirror: 's3:/bucket/runs' is no URI; write for example s3://bucket/runs"),
        ("sftpp://host/runs", "mirror: 'sftpp://host/runs': fsspec knows no protocol 'sftpp'; did you mean sftp?"),
        ("ftp://me:hush@host/runs", "mirror: there is a password in the URI; leave credentials to the environment"),
        *(
            (
                f"https://host/runs?a=1&{name}=hush",
                "mirror: there is a signature or a token in the URI; leave credentials",
            )
            for name in (
                "X-Amz-Signature",
                "X-Goog-Signature",
                "Signature",
                "sig",
                "token",
                "access_token",
                "X-Amz-Credential",
            )
        ),
    ],
)
def test_a_mirror_that_cannot_be_is_refused_with_the_config(tmp_path: Path, uri: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_with(tmp_path, uri)
    assert expected in str(caught.value) and "hush" not in str(caught.value)


def test_a_backend_that_is_not_installed_is_named(tmp_path: Path) -> None:
    fsspec.register_implementation("absent", "absent_fs.Absent", errtxt="Install absent_fs for it", clobber=True)
    with pytest.raises(
        ConfigError, match="mirror: 'absent://x' needs a package that is not installed: Install absent_fs"
    ):
        config_with(tmp_path, "absent://x")


def test_a_mirror_that_cannot_be_written_to_is_refused_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(ConfigError, match=r"mirror: file://.*/file/runs cannot be written to \(NotADirectoryError"):
        refuse_unwritable_mirror(config_with(tmp_path, f"file://{tmp_path}/file/runs"))
    refuse_unwritable_mirror(config_with(tmp_path, f"file://{tmp_path}/new/runs"))
    assert MirrorStore(f"file://{tmp_path}/new/runs").sizes() == {}

"""Commands that only look, given what they cannot look at: one sentence that names it and the remedy, exit code 2, no traceback."""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.cli import main as cli
from deploy.dashboard.serve import TOKEN_VARIABLE, listen
from tests.made_runs import MadeRun

pytestmark = pytest.mark.unit

Say = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """What `bvblend` says of arguments that it refuses, in one line."""

    def say(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["bvblend", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        assert ended.value.code == 2, told
        assert "Traceback" not in told.err and told.out == ""
        assert len(told.err.splitlines()) == 1, told.err
        return told.err

    return say


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    async def make() -> Path:
        run = await (await MadeRun(tmp_path_factory.mktemp("runs"), "run", groups=4).start()).steps(2)
        await run.close()
        return run.directory.path

    return asyncio.run(make())


READERS: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "explain": lambda path: ("explain", "3f:0:0:0", "--run", path),
    "top": lambda path: ("top", path),
    "rebuild": lambda path: ("moments", "rebuild", path),
    "export": lambda path: ("moments", "export", path, "--out", path.parent / "out"),
    "clusters": lambda path: ("clusters", "show", path),
}


@pytest.mark.parametrize("command", READERS)
def test_a_run_that_is_not_there(refused: Say, tmp_path: Path, command: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("nowhere", "empty", "loop"):
        said = refused(*READERS[command](tmp_path / name))
        assert str(tmp_path / name) in said and any(
            word in said for word in ("no run there", "neither a run", "no recipe at", "cannot be read")
        )


@pytest.mark.parametrize("command", [name for name in READERS if name != "top"])
@pytest.mark.parametrize(
    ("config", "why"),
    [("a: &a [x]\nb: [*a, *a]\n", "line 1: not YAML that a run writes"), ("[x", "not YAML"), ("", "holds no settings")],
)
def test_a_run_whose_configuration_cannot_be_read(
    refused: Say, run: Path, tmp_path: Path, command: str, config: str, why: str
) -> None:
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    shutil.copytree(run / "moments", broken / "moments" / "final")
    (broken / "config.yaml").write_text(config)
    said = refused(*READERS[command](broken))
    assert str(broken) in said and "config.yaml" in said and why in said


@pytest.mark.parametrize("command", ["explain", "rebuild"])
def test_a_run_whose_ledger_is_gone_or_garbage(refused: Say, run: Path, tmp_path: Path, command: str) -> None:
    for name, break_it in (
        ("gone", Path.unlink),
        ("garbage", lambda path: path.write_bytes(b"garbage" * 999)),
        ("pipe", as_pipe),
        ("empty", lambda path: path.write_bytes(b"")),
    ):
        broken = tmp_path / name
        shutil.copytree(run, broken)
        for path in (broken / "moments").glob("ledger-*"):
            path.chmod(0o644)
            break_it(path)
        said = refused(*READERS[command](broken))
        assert str(broken / "moments") in said


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def test_a_group_that_is_not_there(refused: Say, run: Path) -> None:
    assert "holds no group nobody; an id is prompt:epoch:occurrence:attempt" in refused(
        "explain", "nobody", "--run", run
    )


@pytest.mark.parametrize("command", ["runs", "dashboard"])
def test_a_directory_of_runs_that_is_none(refused: Say, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for name, what in (("nowhere", "no such directory"), ("file", "not a directory"), ("loop", "symbolic links")):
        said = refused(command, tmp_path / name)
        assert f"{tmp_path / name}: " in said and what in said and "name the one that runs are made in" in said


def test_an_address_that_the_dashboard_cannot_have(refused: Say, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    said = refused("dashboard", run.parent, "--port", port)
    assert f"--port {port}: Address already in use; --port 0 takes a free one" in said
    taken.close()
    monkeypatch.setenv(TOKEN_VARIABLE, "a-token-for-this-test-only")
    assert "an address of this machine, or 0.0.0.0" in refused("dashboard", run.parent, "--host", "203.0.113.7")
    assert "an address of this machine" in refused("dashboard", run.parent, "--host", "no.such.host.invalid")
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    assert "could be guessed" in refused("dashboard", run.parent, "--host", "0.0.0.0")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("compare", "nowhere.yaml"), "no recipe at nowhere.yaml"),
        (("compare", "deploy/recipes/cold_start.yaml", "--estimators", "gpro"), "did you mean grpo"),
        (("compare", "deploy/recipes/cold_start.yaml", "--vary", "steps"), "key.path=value,value"),
        (("clusters", "fit", "nowhere.yaml", "--out", "x"), "no recipe at nowhere.yaml"),
        (("moments", "merge", "nowhere", "nowhere", "--out", "x"), "make some: bvblend moments export"),
        (("moments", "diff", "nowhere", "nowhere"), "make some: bvblend moments export"),
        (("moments", "import", "nowhere", "deploy/recipes/cold_start.yaml"), "make some: bvblend moments export"),
    ],
)
def test_what_is_named_and_not_there(refused: Say, arguments: tuple[str, ...], what: str) -> None:
    assert what in refused(*arguments)

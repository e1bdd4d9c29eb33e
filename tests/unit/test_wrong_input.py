"""Commands, given what they cannot use: one sentence that names it and the remedy, the right exit code, no traceback, no process left."""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray
import yaml

from deploy.cli import main as cli
from deploy.config.recipe import load_recipe
from deploy.dashboard.serve import TOKEN_VARIABLE, listen
from deploy.run.launch import read_pool
from deploy.run.verifier_check import refuse_unusable_verifiers
from tests.hub import POLICY
from tests.made_runs import MadeRun

pytestmark = pytest.mark.unit

Say = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """What `bvblend` says of arguments that it refuses, in one line."""

    def say(*arguments: object, code: int = 2) -> str:
        monkeypatch.setattr("sys.argv", ["bvblend", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        assert ended.value.code == code, told
        assert "Traceback" not in told.err and told.out == ""
        assert len(told.err.splitlines()) == 1, told.err
        assert not ray.is_initialized() and not psutil.Process().children()
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


VERIFIERS = """
def says(prompt, completion): return "good"
def forgets(prompt, completion): pass
def wants_more(prompt, completion, tokens): return 1.0
number = 3
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to call from, as somebody new has it: a recipe, prompts, verifiers, and things that are neither."""
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "q.jsonl": "".join(f'{{"question": "What is {n}?", "answer": "{n}"}}\n' for n in range(8)),
        "none.jsonl": "",
        "my_verifiers.py": VERIFIERS,
        "without_license.py": "raise RuntimeError('no license')",
        "half.py": "def score(",
        "file": "",
        "list.yaml": "- steps",
        "cut.yaml": "steps: [1\n",
        "garbage.jsonl": "garbage",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "directory").mkdir()
    recipe = {
        "name": "mine",
        "policy": str(POLICY),
        "steps": 1,
        "group_size": 2,
        "batch_groups": 2,
        "prompts": {"max_tokens": 64, "sources": [{"kind": "jsonl", "name": "q", "path": "q.jsonl"}]},
        "sampling": {"max_tokens": 8},
        "rollout": {"engine": "transformers", "max_model_len": 128},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        ("nowhere.yaml", "no recipe at nowhere.yaml; shipped in deploy/recipes"),
        ("directory", "directory cannot be read: Is a directory; a recipe is a YAML file"),
        ("bytes.yaml", "bytes.yaml cannot be read: not UTF-8 at byte 0; a recipe is a YAML file"),
        ("list.yaml", "list.yaml holds no settings; a recipe is a mapping of keys to values"),
        ("file", "file holds no settings"),
        ("cut.yaml", "cut.yaml is not YAML: line 2, column 1: "),
    ],
)
def test_a_recipe_that_is_none(refused: Say, place: Path, recipe: str, what: str) -> None:
    for command in ("plan", "train"):
        assert what in refused(command, recipe)


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("steps=many", "steps: Input should be a valid integer"),
        ("stpes=3", "stpes: unknown key (value 3); did you mean steps?"),
        ("batch_groups=0", "batch_groups: Input should be greater than or equal to 1"),
        ("group_size=0", "group_size: Input should be greater than or equal to 1"),
        ("prompts.sources=[]", "prompts.sources: Tuple should have at least 1 item"),
        ("prompts.sources.0.path=none.jsonl", "none.jsonl holds no prompts"),
        ("prompts.sources.0.path=gone.jsonl", "gone.jsonl' is no file"),
        ("prompts.sources.0.path=directory", "directory' is no file"),
        ("prompts.sources.0.verifier=exatc", "did you mean `exact`"),
        (
            "prompts.sources.0.verifier=not_there:score",
            "`not_there:score` does not load: No module named 'not_there'; modules are",
        ),
        ("prompts.sources.0.verifier=without_license:score", "does not load: RuntimeError: no license"),
        ("prompts.sources.0.verifier=half:score", "does not load: SyntaxError: "),
        ("prompts.sources.0.verifier=my_verifiers:gone", "has no attribute 'gone'"),
        ("prompts.sources.0.verifier=my_verifiers:number", "not a callable"),
        ("prompts.sources.0.verifier=my_verifiers:wants_more", "and takes (prompt, completion, tokens)"),
        ("prompts.sources.0.verifier=my_verifiers:says", "returned str, not a number; let `my_verifiers:says` return"),
        (
            "prompts.sources.0.verifier={kind: code, seconds: 10}",
            "`code` takes up to 10 seconds, rewards.timeout_s ends it after 10",
        ),
        (
            'prompts.sources.0.verifier={kind: http, url: "http://127.0.0.1:9", tries: 1}',
            "127.0.0.1:9 cannot be asked: ConnectError",
        ),
        ("prompts.sources.0.weight=0", "weight: Input should be greater than 0"),
        (
            "prompts.curriculum={kind: pass_rate, levels: [[nobody]]}",
            "prompts: curriculum: no source is called `nobody`; ",
        ),
        (
            "prompts.curriculum={kind: steps, stages: [{from_step: 5, weights: {mine: 1}}]}",
            "the first stage is from_step 5; nothing is said of the steps before, begin at 0",
        ),
        (
            "prompts.sources.0={kind: reasoning_gym, name: bits, task: count_bits, params: {min_n: 1, max_n: 2}, fresh: true}",
            "of its prompts, but only 2 distinct ones can be made; widen its `params`, lower `steps` or its share",
        ),
        ("policy=/nowhere/at/all", "/nowhere/at/all is no directory; name one that holds a Hugging Face model"),
        ("policy=./directory", "directory is no Hugging Face directory"),
        ("policy=a/b/c", "a/b/c is no directory beside the recipe, and "),
    ],
)
def test_a_setting_that_cannot_be(refused: Say, place: Path, setting: str, what: str) -> None:
    assert what in refused("train", "mine.yaml", "--set", setting)
    assert not (place / "runs").exists()


@pytest.mark.parametrize("estimator", ["rloo", "pass_at_k"])
def test_groups_of_one_where_nothing_can_be_compared(refused: Say, place: Path, estimator: str) -> None:
    said = refused("train", "mine.yaml", "--set", f"moments.estimator={estimator}", "--set", "group_size=1")
    assert "gives no group of group_size = 1 any advantage; raise group_size" in said


@pytest.mark.parametrize("setting", ["filter=dapo", "order=greso"])
def test_groups_of_one_where_equal_rewards_are_looked_for(refused: Say, place: Path, setting: str) -> None:
    said = refused("train", "mine.yaml", "--set", f"prompts.{setting}", "--set", "group_size=1")
    assert f"prompts.{setting.replace('=', ' = ')} goes by groups of equal rewards" in said


def test_a_verifier_that_forgets_to_return_is_warned_of(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_recipe(place / "mine.yaml", ["prompts.sources.0.verifier=my_verifiers:forgets"])
    refuse_unusable_verifiers(config, read_pool(config))
    assert "about the gold answer '0' of the first prompt, verifier returned NoneType, not a number" in caplog.text


def test_advantages_that_nothing_bounds_are_warned_of(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = ["moments.estimator.variant=paper", "rewards.range=[-1, 1]"]
    read_pool(load_recipe(place / "mine.yaml", settings[1:]))
    assert not caplog.text
    read_pool(load_recipe(place / "mine.yaml", settings))
    assert "up to (high - low) / 1e-08 = 2e+08 for rewards from -1 to 1; variant safe stops at" in caplog.text


@pytest.mark.parametrize(
    ("runs_dir", "why"), [("file", "a file is in the way"), ("/proc/runs", "No such file"), ("file/runs", "a file is")]
)
def test_a_place_where_no_run_can_be_made(refused: Say, place: Path, runs_dir: str, why: str) -> None:
    said = refused("train", "mine.yaml", "--set", f"runs_dir={runs_dir}", code=3)
    assert f"runs_dir: {runs_dir}: no run directory can be made there ({why}" in said and "name another place" in said


def test_a_port_that_is_taken(refused: Say, place: Path) -> None:
    taken = listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    said = refused("train", "mine.yaml", "--dashboard", port)
    assert f"{port}: Address already in use; --dashboard 0 takes a free one" in said
    taken.close()
    assert "write PORT or HOST:PORT" in refused("train", "mine.yaml", "--dashboard", "http")


def test_a_cluster_where_nobody_answers(refused: Say, place: Path) -> None:
    assert "no Ray cluster answers at 127.0.0.1:1" in refused("train", "mine.yaml", "--address", "127.0.0.1:1", code=3)
    assert not (place / "runs").exists()
    said = refused("submit", "mine.yaml", "--address", "http://127.0.0.1:1", "--set", "runs_dir=/shared/runs", code=3)
    assert "http://127.0.0.1:1" in said


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("train",), "name a recipe, or a run to --resume, and not both"),
        (("train", "mine.yaml", "--resume", "directory"), "and not both"),
        (("train", "--resume", "directory"), "no run there (no config.yaml in it)"),
        (("train", "mine.yaml", "--track", "tensorbord"), "did you mean tensorboard?"),
        (("replay", "gone.jsonl"), "no log at gone.jsonl"),
        (("replay", "garbage.jsonl"), "garbage.jsonl: line 1: "),
        (("replay", "none.jsonl"), "none.jsonl: the log is empty"),
        (("replay", "directory"), "directory: neither *.parquet nor *.jsonl there"),
        (("replay", "garbage.jsonl", "--estimator", "gpro"), "did you mean grpo"),
    ],
)
def test_an_argument_that_leads_nowhere(refused: Say, place: Path, arguments: tuple[str, ...], what: str) -> None:
    assert what in refused(*arguments)


def test_an_output_that_cannot_be_written(refused: Say, place: Path) -> None:
    said = refused("clusters", "fit", "mine.yaml", "--set", "moments.clusters.by=source", "--out", "file/out", code=3)
    assert "--out file/out: it cannot be written there (Not a directory); name another place" in said


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("train", "--nope"), "bvblend train: No such option: --nope; `bvblend train --help` says what it takes"),
        (("train", "--sett", "a=1"), "No such option: --sett (Possible options: --set)"),
        (("trian",), "bvblend: No such command 'trian'. Did you mean 'train'?"),
        (("moments", "nope"), "bvblend moments: No such command 'nope'; `bvblend moments --help` says"),
        (("train", "--from-step", "x"), "bvblend train: Invalid value for '--from-step': Input should be a valid integer"),
        (("compare", "mine.yaml", "--seeds", 0), "Invalid value for '--seeds': Input should be greater than or equal to 1"),
        (("explain",), "bvblend explain: Missing argument 'group_id'; `bvblend explain --help` says"),
        (("train", "--set"), "Option '--set' requires an argument; `bvblend train --help` says"),
        (("train", "a", "b", "c"), "Got unexpected extra argument(s) (b c)"),
        (("dashboard", "--port", 99999), "Invalid value for '--port': Input should be less than or equal to 65535"),
        (("train", "--\x1b[31mred"), r"No such option: --\x1b[31mred"),
    ],
)  # fmt: skip
def test_words_that_a_command_does_not_take(refused: Say, words: tuple[object, ...], what: str) -> None:
    assert what in refused(*words)


@pytest.mark.parametrize("group", [(), ("clusters",), ("moments",)])
def test_a_group_of_commands_alone_prints_its_help(
    group: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bvblend", *group])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    assert ended.value.code == 2 and "Usage: bvblend" in told.out and told.err == ""

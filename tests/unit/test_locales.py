"""Files are UTF-8 whatever the locale says, and a terminal that is not is shown what it cannot print."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
import yaml

from deploy.cli import main
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN_1 = {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
TEXT_CALLS = {"read_text": 0, "write_text": 1}
"""Methods of paths that read or write text, and how many arguments stand before the encoding."""


def without_encoding(path: Path) -> Iterator[str]:
    """Places of a file's code that leave an encoding to the locale."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        text = name in TEXT_CALLS and not (isinstance(owner, ast.Name) and owner.id == "durable")
        text = text and isinstance(owner, ast.expr) and len(node.args) == TEXT_CALLS[name]
        if name in ("open", "fdopen"):
            modes = [argument.value for argument in (*node.args[:2], *keywords.values()) if _is_mode(argument)]
            text = bool(modes) and not any("b" in mode for mode in modes)
            text |= not node.args and not keywords and isinstance(owner, ast.Name) and "path" in owner.id
        text |= any(isinstance(keywords.get(key), ast.Constant) for key in ("text", "universal_newlines"))
        if text and "encoding" not in keywords:
            yield f"{path.relative_to(ROOT)}:{node.lineno}"


def _is_mode(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and bool(node.value)
        and set(node.value) <= set("rwaxbt+")
    )


def test_no_file_is_read_or_written_in_the_encoding_of_the_locale() -> None:
    rooms = ("actors", "deploy", "learner", "moments_service", "benchmarks", "docs")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 150
    assert not [place for path in files for place in without_encoding(path)]


def bvblend(*arguments: str, locale: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[bytes]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONIO"))}
    environment |= {"PYTHONPATH": str(ROOT), **locale}
    command = [sys.executable, "-m", "deploy.cli", *arguments]
    return subprocess.run(command, capture_output=True, cwd=cwd, env=environment, check=False)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "aufgaben.jsonl").write_text('{"question": "Größe von 中?", "answer": "四"}\n', encoding="utf-8")
    source = {
        "kind": "jsonl",
        "name": "größe 中",
        "path": "aufgaben.jsonl",
        "verifier": "exact",
        "template": "{question} ‽",
    }
    settings = {
        "name": "mine",
        "policy": str(ROOT / "deploy" / "recipes" / "cold_start" / "policy"),
        "steps": 1,
        "prompts": {"sources": [source]},
        "moments": {"clusters": {"by": "source"}},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return path


@pytest.mark.parametrize("locale", [ASCII, LATIN_1], ids=["ascii", "latin-1"])
def test_commands_survive_a_locale_that_is_not_utf8(recipe: Path, locale: dict[str, str]) -> None:
    shown = bvblend("clusters", "show", str(recipe), locale=locale, cwd=recipe.parent)
    assert shown.returncode == 0, shown.stderr
    assert b"gr\\xf6\\xdfe" in shown.stdout or b"gr\xf6\xdfe" in shown.stdout
    assert b"\\u4e2d" in shown.stdout
    refused = bvblend("plan", str(recipe), "--set", "sampling.größe=1", locale=locale, cwd=recipe.parent)
    assert refused.returncode == 2 and b"unknown key (value 1)" in refused.stderr


def test_replayed_lines_are_json_on_every_terminal(tmp_path: Path) -> None:
    line = {"step": 0, "group": "größe 中 😀", "cluster": 0, "rewards": [0, 1]}
    (tmp_path / "log.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    done = bvblend("replay", "log.jsonl", "--estimator", "grpo", locale=ASCII, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["group"] == line["group"]


def test_a_name_that_the_locale_has_no_letters_for_is_said(recipe: Path) -> None:
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    settings["prompts"]["sources"][0]["path"] = "größe.jsonl"
    recipe.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    done = bvblend("clusters", "show", str(recipe), locale=ASCII, cwd=recipe.parent)
    assert done.returncode == 2 and b"set LC_ALL=C.UTF-8 or PYTHONUTF8=1" in done.stderr


def command_that(fails: Callable[[], bytes]) -> typer.Typer:
    app = typer.Typer()
    app.command()(lambda: fails())
    return app


def test_a_directory_that_cannot_be_named_is_an_environment_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bvblend"])
    monkeypatch.setattr(main, "app", command_that(lambda: "größe".encode("ascii")))
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 3
    assert "'größe' can be no file's name in this locale, whose encoding is ascii" in capsys.readouterr().err
    monkeypatch.setattr(main, "app", command_that("\ud800".encode))
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 4 and "locale" not in capsys.readouterr().err

"""What comes from data is text: no view executes it, raises because of it, or loses a part of it."""

import ast
import asyncio
import io
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deploy.cli import console as cli_console
from deploy.cli import main as cli_main
from deploy.cluster.doctor import MachineCheck, machine_table
from deploy.config.recipe import ConfigError
from deploy.report.clusters import clusters_table
from deploy.report.compare import Comparison
from deploy.report.explain import explanation
from deploy.report.live import create_display
from deploy.report.progress import progress
from deploy.report.runs import runs_table
from deploy.report.summary import markdown, rich_table, summarise
from deploy.report.terminal import Terminal
from deploy.report.top import watch
from deploy.report.visible import one_line, visible
from deploy.rundir.catalog import Catalog
from deploy.rundir.evaluation import Evaluation
from deploy.rundir.layout import RunDirectory
from moments_service.clusters import fit_clusters
from moments_service.health import Alarm
from moments_service.offline.explain import explain
from tests.conftest import ROOT
from tests.made_runs import MadeRun
from tests.unit.test_reports import STATS, row

pytestmark = pytest.mark.unit

TAGS = "[/b][math]:smile:"
"""Closes what was never opened, names what is no style, and is an emoji's code."""
HOSTILE = f"{TAGS}\x1b]0;owned\x07\x1b[8m\x9b31m\r\b\x0b\u202egood\u2028$\\frac"
SHOWN = f"{TAGS}␛]0;owned␇␛[8m⟨U+009B⟩31m␍␈␋⟨U+202E⟩good⟨U+2028⟩$\\frac"
OWN = re.compile(r"\x1b\[\?25[lh]|\x1b\[\d*[AGK]|\x1b\[2K|\r")
"""How a live view moves its cursor."""
TAG = re.compile(r"\[/?(bold|dim|italic|red|green|yellow|cyan|blue|magenta)\b[^\]]*\]|\[/\]")
A_DIRECTORY = HOSTILE.replace("/", "|")


def unseen(text: str) -> set[str]:
    """Characters that a terminal would act on."""
    turners = {
        char
        for char in text
        if unicodedata.bidirectional(char) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    }
    return turners | {
        char for char in text if unicodedata.category(char) in ("Cc", "Zl", "Zp", "Cs") and char not in "\n\t"
    }


def printed(*what: RenderableType, width: int = 400) -> str:
    """As a terminal that has no colours gets it."""
    terminal = Terminal(file=io.StringIO(), force_terminal=True, color_system=None, width=width)
    for one in what:
        terminal.print(one)
    assert isinstance(terminal.file, io.StringIO)
    return terminal.file.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """A run whose name, sources and completions are hostile."""
    runs_dir = tmp_path_factory.mktemp("runs")
    texts = dict.fromkeys(range(1000), f"first\n{HOSTILE}")

    async def make() -> MadeRun:
        made = await MadeRun(runs_dir, A_DIRECTORY, steps=4, sources=(HOSTILE, "plain"), texts=texts).start()
        return await (await made.steps(4)).finish()

    made = asyncio.run(make())
    live = json.loads(made.directory.live.read_text())
    made.directory.live.write_text(json.dumps(live | {"cluster_names": [HOSTILE] * 12}))
    made.directory.append_alarm(3, Alarm(HOSTILE, 0, 1.0, 2.0))
    return made


@given(st.text())
def test_nothing_that_acts_is_left_of_any_text(text: str) -> None:
    assert not unseen(visible(text)) and not unseen(one_line(text)) & set("\n\t")
    assert visible(visible(text)) == visible(text)
    visible(text).encode()


def views(run: MadeRun) -> Iterator[tuple[str, Callable[[], str]]]:
    directory = run.directory
    before = {"train": Evaluation(0.1, {HOSTILE: 0.1}, 4, 0)}
    checks = [MachineCheck(HOSTILE, HOSTILE, HOSTILE)]

    def explained() -> str:
        found = explain(run.config.moments, directory.moments, run.group_ids[0])
        return printed(*(explanation(one, HOSTILE) for one in found))

    def top() -> str:
        terminal = Terminal(file=(file := io.StringIO()), force_terminal=True, color_system=None, width=400)
        watch(directory, terminal, once=True)
        return file.getvalue()

    def clusters() -> str:
        prompts = SimpleNamespace(text=f"{HOSTILE}?", source=HOSTILE)
        found = fit_clusters(run.config.moments.clusters, run.prompts, 0)
        return printed(clusters_table(found, (prompts,) * len(run.prompts), run.prompts, None))  # type: ignore[arg-type]

    def live(terminal: bool) -> str:
        console = Terminal(file=(file := io.StringIO()), force_terminal=terminal, color_system=None, width=400)
        display = create_display(console, 10)
        display.name_clusters([HOSTILE] * 2)
        display.note(HOSTILE)
        display.show_step(row(0, **{f"pass_at_1/{HOSTILE}": 0.5}), STATS)
        display.close()
        return OWN.sub("", file.getvalue())

    def summary() -> str:
        found = summarise(directory, before, before, HOSTILE)
        return printed(rich_table(found)) + visible(markdown(found)).replace("\\", "")

    def compare() -> str:
        comparison = Comparison(run.config, ["grpo"], 1, directory.path)
        comparison.variants = [replace(variant, estimator=HOSTILE) for variant in comparison.variants]
        return printed(comparison.table())

    def working() -> str:
        console = Terminal(file=(file := io.StringIO()), force_terminal=True, color_system=None, width=400)
        with progress(console, HOSTILE) as advance:
            advance(1, 2)
        return OWN.sub("", file.getvalue())

    yield "explain", explained
    yield "top", top
    yield "clusters", clusters
    yield "live view", lambda: live(True)
    yield "lines of a log", lambda: live(False)
    yield "summary", summary
    yield "progress", working
    yield "runs", lambda: printed(runs_table(Catalog(directory.path.parent).rows()))
    yield "compare", compare
    yield "doctor", lambda: printed(machine_table(checks))
    yield "a title of a panel", lambda: printed(Panel("inside", title=Text(HOSTILE)))


def test_every_view_shows_hostile_text_as_it_is(run: MadeRun) -> None:
    for name, view in views(run):
        text = view()
        assert not unseen(text), f"{name} executes {unseen(text)}"
        assert TAGS in text.replace("|", "/"), f"{name} takes a part of the text for markup:\n{text}"
        assert "␛]0;owned" in text, f"{name} loses what it does not execute:\n{text}"


def test_strings_texts_and_cells_are_text_also_where_nobody_thought_of_it() -> None:
    table = Table(title=HOSTILE, caption=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(Text(HOSTILE))
    for what in (HOSTILE, Text(HOSTILE), table, Text.assemble("a", (HOSTILE, "red"))):
        text = printed(what)
        assert not unseen(text) and TAGS in text
    assert printed(HOSTILE).strip() == SHOWN


def test_what_went_wrong_is_text_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise ConfigError(f"source {HOSTILE}\ud800")

    monkeypatch.setattr(cli_main, "app", app)
    monkeypatch.setattr(sys, "argv", ["bvblend"])
    with pytest.raises(SystemExit) as ended:
        cli_main.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and not unseen(said) and SHOWN in said


def test_a_picture_of_hostile_names_is_drawn(tmp_path: Path) -> None:
    """A dollar begins a formula in matplotlib, and what is none there is an error."""
    run = RunDirectory.create(tmp_path, "test", "config")
    for step in range(3):
        run.append_metrics(row(step))
    sources = dict.fromkeys((HOSTILE, "$\\frac{$", "源 ü", "a|b<i>"), 0.5)
    ends = {split: Evaluation(0.1, sources, 4, 0) for split in ("train", "held_out")}
    summarise(run, ends, ends, "$x^")
    assert (run.path / "summary.png").read_bytes().startswith(b"\x89PNG")
    written = (run.path / "summary.md").read_text()
    assert not unseen(written) and "| a\\|b\\<i> |" in written and "| 源 ü |" in written


def test_everything_is_printed_by_the_one_kind_of_console() -> None:
    """No other console is made, and nobody writes markup or asks for it."""
    found = []
    for path in (ROOT / "deploy").rglob("*.py"):
        if path == ROOT / "deploy/report/terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            found += [(path.name, node.lineno, why) for why in markup(node)]
    assert not found
    assert type(cli_console.console) is type(cli_console.errors) is Terminal


def markup(node: Any) -> Iterator[str]:
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in ("Console", "get_console", "from_markup", "render_markup"):
            yield name
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        off = isinstance(value := named.get("markup"), ast.Constant) and value.value is False
        if (name == "TextColumn" or "markup" in named) and not off:
            yield f"{name} with markup"
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and TAG.search(node.value):
        yield node.value
    if isinstance(node, ast.ImportFrom) and node.module == "rich" and any(one.name == "print" for one in node.names):
        yield "rich.print"

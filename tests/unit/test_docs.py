"""The documentation: its links lead somewhere, its commands exist, the site builds."""

import errno
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
import typer

from deploy.cli.main import app
from moments_service.health import AlarmKind
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

PACKAGES = ("actors", "learner", "moments_service", "deploy")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def fenced(page: Path, languages: tuple[str, ...] = ("", "bash")) -> list[str]:
    """Code blocks of a page in these languages."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [text for language, text in blocks if language in languages]


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


COMMANDS = sorted(
    {
        line[line.index("bvblend ") :]
        for page in PAGES
        for block in fenced(page)
        for line in block.replace("\\\n", " ").splitlines()
        if re.search(r"(^|-- |&& )bvblend ", line)
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_such_as_there_are(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    while inner := getattr(command, "commands", None):
        command = inner[words.pop(0)]
    command.make_context(str(command.name), words)  # what is unknown, missing or of the wrong kind raises


def test_there_are_commands_in_the_docs() -> None:
    assert len(COMMANDS) > 20


def test_every_alarm_stands_in_operations() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "operations.md").read_text(), flags=re.MULTILINE)
    assert set(get_args(AlarmKind)) <= set(rows)


SYSTEM = {"MemoryError", "KeyboardInterrupt", "SystemExit", "CancelledError"} | {
    os.strerror(n) for n in errno.errorcode
}
"""What others say, and a run passes on."""


def messages() -> list[tuple[str, str]]:
    """What the tables of operations explain, with the heading: all that stands as code in a first cell."""
    found = []
    for section in re.split(r"^## ", (ROOT / "docs" / "operations.md").read_text(), flags=re.MULTILINE)[1:]:
        _, _, table = section.partition("| what you see |")
        rows = re.findall(r"^\| (.+?) \|", table, flags=re.MULTILINE)
        found += [(section.splitlines()[0], text) for row in rows for text in re.findall(r"`([^`]+)`", row)]
    return found


def test_messages_that_operations_explains_are_such_as_the_code_has() -> None:
    code = "".join(path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    code = re.sub(
        r"\{[^{}]*\}", "", re.sub(r"\"\s*\n\s*f?\"", "", code)
    )  # a sentence over several lines; what varies in it
    missing = [
        f"{heading}: {message}: {fixed.strip()}"
        for heading, message in messages()
        for fixed in re.split(r"\bN\b|\S*\d\S*|\bnan\b|…", message)
        if message not in SYSTEM and fixed.strip() not in code
    ]
    assert not missing, "\n".join(missing)
    assert len(messages()) > 100


def test_operations_explains_a_message_once() -> None:
    texts = [text for _, text in messages()]
    assert not {text for text in texts if texts.count(text) > 1}


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.stem for path in tmp_path.glob("*.html")}
    assert pages >= {page.stem for page in PAGES if page.name != "README.md"}
    assert "cdn" not in (tmp_path / "index.html").read_text().lower()

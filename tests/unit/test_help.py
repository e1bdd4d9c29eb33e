"""`--help` of every command, as a person in a terminal sees it, and what they typed wrong."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.config.recipe import ConfigError
from deploy.dashboard.actor import parse_address
from deploy.dashboard.serve import TOKEN_VARIABLE

pytestmark = pytest.mark.unit

SCREEN_LINES = 40


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


@pytest.mark.parametrize("path", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_help_fits_a_screen_and_shows_an_example(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    assert len(shown.output.splitlines()) <= SCREEN_LINES
    assert f"bvblend {' '.join(path)}".strip() in " ".join(shown.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("address", "token", "message"),
    [
        ("here", None, "write PORT or HOST:PORT"),
        ("8420x", None, "write PORT or HOST:PORT"),
        ("99999", None, "write PORT or HOST:PORT"),
        ("0.0.0.0:8420", None, TOKEN_VARIABLE),
        ("0.0.0.0:8420", "short", "could be guessed"),
    ],
)
def test_a_dashboard_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str, token: str | None, message: str
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    if token is not None:
        monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(ConfigError, match=message):
        parse_address(address)


def test_a_port_alone_is_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    access, port = parse_address("8420")
    assert (access.host, access.token, port) == ("127.0.0.1", None, 8420)
    assert parse_address("[::1]:0")[0].host == "::1"

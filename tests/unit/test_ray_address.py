"""Which Ray an address means, and that nobody waits where none answers."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.cluster import address as addresses
from deploy.cluster.address import dashboard_of, ray_to_join
from deploy.cluster.environment import EnvironmentProblemError
from tests.conftest import ROOT, free_ports

pytestmark = pytest.mark.unit

COLD_START = str(ROOT / "deploy" / "recipes" / "cold_start.yaml")
SOON_S = 5.0
"""Far below what Ray waits by itself (830 s)."""


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def web_server() -> Iterator[int]:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("by_variable", [False, True])
def test_an_address_where_nobody_answers_is_named_within_seconds(
    by_variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    named = f"127.0.0.1:{port}"
    if by_variable:
        monkeypatch.setenv("RAY_ADDRESS", named)
    started = time.monotonic()
    said = rf"{named} \(RAY_ADDRESS\).*unset RAY_ADDRESS" if by_variable else f"{named}: .*--address"
    with pytest.raises(EnvironmentProblemError, match=said):
        ray_to_join(None if by_variable else named)
    assert time.monotonic() - started < SOON_S


def test_plan_says_it_too_with_the_code_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    done = CliRunner().invoke(app, ["plan", COLD_START])
    assert isinstance(done.exception, EnvironmentProblemError) and str(port) in str(done.exception)


@pytest.mark.parametrize("server", [silent, web_server])
def test_what_answers_but_is_no_ray_is_told_apart(server: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "ANSWER_S", 0.5)
    with server() as port, pytest.raises(EnvironmentProblemError, match=f"127.0.0.1:{port} is no Ray"):  # type: ignore[operator]
        ray_to_join(f"127.0.0.1:{port}")


@pytest.mark.parametrize("kind", ["http", "https", "ray"])
def test_an_address_of_another_kind_is_refused_with_the_right_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"{kind}://head:8265/")
    with pytest.raises(EnvironmentProblemError, match=r"RAY_ADDRESS.*head:6379.*submit.*http://head:8265"):
        ray_to_join(None)


@pytest.mark.parametrize("wrong", ["head", "head:", ":6379", "head:port"])
def test_a_host_without_a_port_is_no_address(wrong: str) -> None:
    with pytest.raises(EnvironmentProblemError, match=f"{wrong} is no address of a Ray"):
        ray_to_join(wrong)


def test_submit_takes_a_dashboard_and_names_it_where_ray_itself_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dashboard_of("http://head:8265") == "http://head:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    with pytest.raises(EnvironmentProblemError, match=r"10.0.0.7:6379 \(RAY_ADDRESS\).*--address http://10.0.0.7:8265"):
        dashboard_of("10.0.0.7:6379")
    with pytest.raises(EnvironmentProblemError, match="--address http://HEAD:8265"):
        dashboard_of("auto")

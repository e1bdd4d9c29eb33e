"""Which Ray an address means, and that nobody waits where none answers."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
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


@contextmanager
def ray_with_token(token: str) -> Iterator[int]:
    """Answers as Ray's GCS does, which looks for the token before anything else."""

    class Gcs(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            def answer(_: bytes, context: Any) -> bytes:
                if ("authorization", f"Bearer {token}") not in details.invocation_metadata:
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), [Gcs()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None)


@pytest.mark.parametrize("ours", ["the-cluster-s-own-token", "another-token", None])
def test_a_wrong_token_is_said_within_seconds(ours: str | None) -> None:
    """In a process of its own, because Ray reads the token once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "HOME": "/nowhere",
        "PYTHONPATH": str(ROOT),
    }
    if ours is not None:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ours}
    else:
        environment |= {"RAY_AUTH_MODE": "disabled"}
    with ray_with_token("the-cluster-s-own-token") as port:
        script = f"""
import time
from deploy.cluster.address import ray_to_join
from deploy.cluster.environment import EnvironmentProblemError
import ray
begun = time.monotonic()
try:
    print(ray_to_join("127.0.0.1:{port}"))
except EnvironmentProblemError as error:
    print(error)
assert time.monotonic() - begun < {SOON_S}
"""
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 0, done.stderr
    if ours == "the-cluster-s-own-token":
        assert done.stdout == f"127.0.0.1:{port}\n"
    else:
        assert f"127.0.0.1:{port} does not take the token of this environment: set RAY_AUTH_MODE=token" in done.stdout


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

"""A sandbox over HTTP, against a service on loopback that speaks its API; programs run in this machine's sandbox behind it."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from actors.prompts.prompt import Prompt
from actors.rewards.protocol import Attempt
from actors.sandbox.local import LocalSandbox
from actors.sandbox.program import Limits, Program, SandboxError
from actors.sandbox.remote import RemoteSandbox
from actors.verifiers import get_verifier

pytestmark = pytest.mark.unit


class Service(ThreadingHTTPServer):
    """What SandboxFusion answers, of one that may be told to fail."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sandboxes = [LocalSandbox() for _ in range(2)]
        self.status, self.body = 200, b""
        self.now, self.most, self.count = 0, 0, threading.Lock()
        self.asked: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.count:
            self.server.asked.append(asked)
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        body = self.server.body or self._run(asked)
        with self.server.count:
            self.server.now -= 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _run(self, asked: dict[str, Any]) -> bytes:
        sandbox = self.server.sandboxes[len(self.server.asked) % 2]
        limits = Limits(wall_s=asked["run_timeout"], memory_mib=asked["memory_limit_MB"])
        outcome = sandbox.run(Program(asked["code"], asked["stdin"], limits))
        late = outcome.ending == "wall_time"
        code = None if late else -outcome.code if outcome.ending == "killed" else outcome.code
        result = {
            "status": "TimeLimitExceeded" if late else "Finished",
            "execution_time": None if late else outcome.wall_s,
            "return_code": code,
            "stdout": outcome.stdout,
            "stderr": outcome.stderr,
        }
        status = "Success" if code == 0 else "Failed"
        return json.dumps({"status": status, "message": "", "compile_result": None, "run_result": result}).encode()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def started() -> Iterator[Service]:
    with Service() as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield service
        service.shutdown()
        for sandbox in service.sandboxes:
            sandbox.close()


@pytest.fixture
def service(started: Service) -> Service:
    started.status, started.body, started.most = 200, b"", 0
    started.asked.clear()
    return started


def url(service: Service) -> str:
    return f"http://127.0.0.1:{service.server_port}/"


def test_programs_run_there(service: Service) -> None:
    sandbox = RemoteSandbox(url(service))
    done = sandbox.run(Program("print(input()); exit(3)", "hello", Limits(wall_s=20.0, memory_mib=100)))
    assert (done.ending, done.code, done.stdout, done.stderr) == ("ended", 3, "hello\n", "")
    assert service.asked[0]["language"] == "python" and service.asked[0]["memory_limit_MB"] == 100
    late = sandbox.run(Program("import time; time.sleep(60)", limits=Limits(wall_s=0.3)))
    assert late.ending == "wall_time"
    dead = sandbox.run(Program("import os; os.kill(os.getpid(), 9)"))
    assert (dead.ending, dead.code) == ("killed", 9)
    sandbox.close()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, "{}"),
        (200, "not JSON"),
        (200, "[]"),
        (200, "{}"),
        (200, '{"status": "SandboxError", "message": "out of disk", "run_result": null}'),
        (200, '{"status": "Success", "run_result": null}'),
        (200, '{"status": "Success", "run_result": {"status": "Error", "return_code": null}}'),
    ],
)
def test_a_service_that_fails_is_an_error_of_the_sandbox(service: Service, status: int, body: str) -> None:
    service.status, service.body = status, body.encode()
    with pytest.raises(SandboxError, match=url(service).rstrip("/")):
        RemoteSandbox(url(service)).run(Program("pass"))


def test_a_service_that_is_not_there_is_said_when_the_verifier_is_loaded() -> None:
    with pytest.raises(SandboxError, match="gave no answer"):
        get_verifier('{"kind": "code", "sandbox": {"kind": "http", "url": "http://127.0.0.1:9"}}')


async def test_completions_are_judged_there_a_bounded_number_at_once(service: Service) -> None:
    options = {"kind": "code", "sandbox": {"kind": "http", "url": url(service), "concurrent": 2}, "seconds": 20.0}
    verifier = get_verifier(json.dumps(options))
    prompt = Prompt("id", "source", "text", "assert f(1) == 2\nassert f(2) == 3", "code")
    attempts = [Attempt(f"def f(x): return x + {more}") for more in (1, 2, 1, 0)]
    verdicts = await asyncio.gather(*(verifier.judge_one(prompt, attempt) for attempt in attempts))  # type: ignore[attr-defined]
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 1.0, 0.0]
    assert service.most == 2
    # What tests expect is in no program that the service is given, but on stdin, which the examiner alone reads.
    assert not any("f(1) == 2" in asked["code"] for asked in service.asked)

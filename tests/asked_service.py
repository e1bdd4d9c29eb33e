"""A service on loopback that verifiers ask over HTTP, and that may be told to misbehave."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answering = Callable[["Handler", dict[str, Any]], None]


class Service(ThreadingHTTPServer):
    """Answers the first of `answers` that is left, and `otherwise` when none is."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.counting = threading.Lock()
        self.ended = threading.Event()
        self.begin()

    def begin(self) -> None:
        """As if nobody had asked."""
        self.answers: list[Answering] = []
        self.otherwise: Answering = says(1.0)
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """Callers that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.counting:
            self.server.asked.append({"path": self.path, **asked})
            self.server.headers.append(dict(self.headers))
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
            answering = self.server.answers.pop(0) if self.server.answers else self.server.otherwise
        try:
            answering(self, asked)
        finally:
            with self.server.counting:
                self.server.now -= 1

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def says(value: Any, status: int = 200, **headers: str) -> Answering:
    """The value as JSON; bytes as they are."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda handler, _: handler.send(body, status, **headers)


def hangs(handler: Handler, _: dict[str, Any]) -> None:
    handler.server.ended.wait()


def hangs_amid(handler: Handler, _: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"{")
    handler.server.ended.wait()


def drops(handler: Handler, _: dict[str, Any]) -> None:
    handler.close_connection = True
    handler.connection.close()


def never_ends(handler: Handler, _: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(1 << 40))
    handler.end_headers()
    while not handler.server.ended.is_set():
        handler.wfile.write(b" " * 65536)


@contextmanager
def served() -> Iterator[Service]:
    with Service() as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield service
        service.ended.set()
        service.shutdown()

"""Who may read: loopback without a question, everybody else with the token. And what a browser may do with a page."""

import asyncio
import hashlib
import hmac
from http.cookies import CookieError, SimpleCookie
from importlib.resources import files
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "bvblend_session"
LOGIN = "/login"
LEAST_TOKEN_CHARS = 16
_MOST_LOGIN_BYTES = 4096
_OPEN_PATHS = ("/static/style.css", "/static/theme.js", "/static/icon.svg")
"""What the form to log in is made of."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """ASGI layer around the whole application.

    hosts: names that a request may be addressed to, so that no page elsewhere reaches a loopback server under a name of its
    own; empty for any.    token: None where none is asked for.    body_s: how long a request's body may take.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: frozenset[str], body_s: float) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts
        self._body_s = body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if not scope["path"].startswith("/static/"):
                    headers["cache-control"] = "no-store"
            await send(message)

        response = await self._answer(scope, receive)
        await (self._app if response is None else response)(scope, receive, send_with_headers)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """What stands in the way of a request; None if nothing does."""
        headers = Headers(scope=scope)
        if self._hosts and _host_name(headers.get("host", "")) not in self._hosts:
            return PlainTextResponse("this server answers to its own address only", 421)
        if self._token is not None and scope["path"] == LOGIN:
            return await self._log_in(scope, receive)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("the dashboard only reads", 405, headers={"allow": "GET, HEAD"})
        if self._token is None or scope["path"] in _OPEN_PATHS or self._admitted(headers, self._token):
            return None
        if scope["path"] == "/":
            return RedirectResponse(LOGIN, 303)
        return PlainTextResponse("log in, or send the header Authorization: Bearer TOKEN", 401)

    async def _log_in(self, scope: Scope, receive: Receive) -> Response:
        assert self._token is not None
        page = files("deploy.dashboard").joinpath("static/login.html").read_text(encoding="utf-8")
        if scope["method"] != "POST":
            return HTMLResponse(page)
        try:
            async with asyncio.timeout(self._body_s):
                form = parse_qs((await _body(receive)).decode(errors="replace"))
        except TimeoutError:
            return PlainTextResponse(f"no whole form in {self._body_s:g} s", 408, headers={"connection": "close"})
        if not _same(form.get("token", [""])[0], self._token):
            return HTMLResponse(page.replace("hidden", ""), 403)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, session_of(self._token), httponly=True, samesite="strict", path="/")
        return answer

    def _admitted(self, headers: Headers, token: str) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(given, token):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and _same(cookie.value, session_of(token))


def session_of(token: str) -> str:
    """What the cookie holds: not the token, so that a browser's store does not give it away."""
    return hmac.new(token.encode(), b"bvblend dashboard session", hashlib.sha256).hexdigest()


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), wanted.encode(errors="replace"))


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    return host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]


async def _body(receive: Receive) -> bytes:
    body = b""
    while len(body) <= _MOST_LOGIN_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body
    return b""

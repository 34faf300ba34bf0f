"""Who may use the studio: a token, the names that the server answers to, and what browsers may load.

new_token() -> str
Access(token, host, port, name=None): token is None for a studio without one
AccessMiddleware(app, access, most_bytes): around the whole service, pages and their web socket included
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = ("/health",)
"""Paths without a token: they reveal nothing."""
KEPT_PATH = "/_nicegui/"
"""Path of the scripts and fonts of the pages, which alone a browser may keep."""
HEADERS = {
    # NiceGUI's pages need inline scripts, and Vue compiles templates in the browser; all that is loaded is our own.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
NEEDED = (
    "a token is needed: open the address that medfusion studio printed at its start, or send its token as "
    "'Authorization: Bearer TOKEN'"
)


def new_token() -> str:
    """Return a token of 256 random bits."""
    return secrets.token_urlsafe(32)


def is_loopback(host: str) -> bool:
    """Return whether only programs of this machine reach a host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Access:
    """What a request must bring.

    Attributes:
        token: that it must know; None for all.
        host: that the server listens on.
        port: of the server. Browsers send cookies to all ports of a host: the name of ours has the port.
        name: under which a proxy passes requests on; None without one.
    """

    token: str | None
    host: str
    port: int
    name: str | None = None

    @property
    def cookie(self) -> str:
        """Name of the cookie with the token."""
        return f"medfusion_studio_{self.port}"

    def is_known_host(self, header: str) -> bool:
        """Return whether a ``Host`` header names this server.

        A page of another host can reach a server of this machine by a name that changes its address, but not under a
        name that we know. A server on all addresses cannot know its names: there, the token alone protects it.
        """
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:  # brackets of IPv6 without an end
            return False
        is_everywhere = self.host in ("0.0.0.0", "::")
        known = (*LOOPBACK, self.host.lower(), (self.name or self.host).lower())
        return (is_everywhere and self.token is not None) or name in known

    def is_known(self, given: str) -> bool:
        """Return whether a text is the token, in a time that does not depend on it."""
        return self.token is None or hmac.compare_digest(given.encode(), self.token.encode())


class AccessMiddleware:
    """Refuses requests under another name, of other pages, without the token, or too large, and adds headers.

    The token comes as bearer, as cookie, or as ``?token=``: the answer to the last sets the cookie and leads to the
    same address without the token.

    Args:
        app: the service.
        access: what a request must bring.
        most_bytes: of its body.
    """

    def __init__(self, app: ASGIApp, access: Access, most_bytes: int) -> None:
        self.app, self.access, self.most_bytes = app, access, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or pass it on."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        answer = self._answer(connection)
        if answer is None:
            await self.app(scope, self._limited(receive), _with_headers(send, scope["path"]))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await answer(scope, receive, _with_headers(send, scope["path"]))

    def _answer(self, connection: HTTPConnection) -> Response | None:
        """Return the answer to a request that is not passed on, or None."""
        headers = connection.headers
        if not self.access.is_known_host(headers.get("host", "")):
            return _refusal(connection, 400, "this server has another name: open it by the address that it printed")
        if "origin" in headers and headers["origin"].partition("://")[2] != headers.get("host"):
            return _refusal(connection, 403, "a page of another address must not use this server")
        if connection.scope["path"] in OPEN_PATHS:
            return None
        token = connection.query_params.get("token")
        if token is not None and connection.scope.get("method") == "GET" and self.access.is_known(token):
            return self._with_cookie(connection)
        if not self._brings_token(connection):
            return _refusal(connection, 401, NEEDED)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.most_bytes:
            return _refusal(connection, 413, self._too_large)
        return None

    def _brings_token(self, connection: HTTPConnection) -> bool:
        scheme, _, credentials = connection.headers.get("authorization", "").partition(" ")
        bearer = credentials.strip() if scheme.lower() == "bearer" else ""
        return any(self.access.is_known(given) for given in (bearer, connection.cookies.get(self.access.cookie, "")))

    def _with_cookie(self, connection: HTTPConnection) -> Response:
        """Lead to the same address without the token, which a cookie keeps until the browser is closed."""
        others = urlencode([(name, value) for name, value in connection.query_params.multi_items() if name != "token"])
        path = "/" + quote(connection.scope["path"].lstrip("/"))  # one slash: two would lead to another host
        answer = RedirectResponse(f"{path}?{others}" if others else path, 303)
        if self.access.token is not None:
            secure = connection.scope["scheme"] == "https"  # as a proxy on this machine says
            answer.set_cookie(self.access.cookie, self.access.token, httponly=True, samesite="strict", secure=secure)
        return answer

    @property
    def _too_large(self) -> str:
        return f"the request has more than {self.most_bytes / 2**20:g} MiB"

    def _limited(self, receive: Receive) -> Receive:
        """Return what receives a request, and ends it once its body is too large, whatever its header says."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self.most_bytes:
                    raise HTTPException(413, self._too_large)
            return message

        return limited


def _refusal(connection: HTTPConnection, status: int, text: str) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if "text/html" in connection.headers.get("accept", ""):
        return PlainTextResponse(f"Medfusion studio: {text}.\n", status, headers)
    return JSONResponse({"detail": text}, status, headers)


def _with_headers(send: Send, path: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            if not path.startswith(KEPT_PATH):
                headers["Cache-Control"] = "no-store"
        await send(message)

    return sending

"""Which requests ``medfusion label`` answers: under its own names, and of no pages but its own and allowed ones."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from medfusion_monai.studio.access import Access


class OwnPagesMiddleware:
    """Refuses requests under a name that is not the server's, and those of other web sites.

    A site can lead a name of its own to 127.0.0.1, and can send forms to any address; a browser names both in ``Host``
    and ``Origin``. Slicer and other programs send no ``Origin``.

    Args:
        app: the service.
        access: host and port of the server.
        allow_origins: other web sites, as ``https://HOST``.
    """

    def __init__(self, app: ASGIApp, access: Access, allow_origins: Collection[str] = ()) -> None:
        self.app, self.access, self.allow_origins = app, access, allow_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or pass it on."""
        refusal = self._refusal(Headers(scope=scope)) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await JSONResponse({"detail": refusal[1]}, refusal[0])(scope, receive, send)

    def _refusal(self, headers: Headers) -> tuple[int, str] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not (self.access.is_known_host(host) or self._is_machine(host)):
            return 400, "this server has another name: use the address that --host names, or 127.0.0.1"
        if origin is None or origin in self.allow_origins or origin.partition("://")[2] == host:
            return None
        return 403, f"pages of {origin} must not use this server: start it with --allow-origin {origin}"

    def _is_machine(self, header: str) -> bool:
        """Return whether, on all addresses, a ``Host`` header is an address or the name of this machine.

        Neither can be led elsewhere by a site.
        """
        if self.access.host not in ("0.0.0.0", "::"):
            return False
        try:
            name = urlsplit(f"//{header}").hostname or ""
            return name in (socket.gethostname().lower(), socket.getfqdn().lower()) or bool(ipaddress.ip_address(name))
        except ValueError:
            return False

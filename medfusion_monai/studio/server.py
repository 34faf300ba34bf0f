"""Serves a studio on a port.

make_app(studio, access) -> FastAPI, the service behind its token
serve(studio, listening, host, token, name), until it is interrupted
"""

from __future__ import annotations

import asyncio
import errno
import socket
import warnings
from contextlib import suppress

import uvicorn
from fastapi import FastAPI
from starlette.formparsers import MultiPartParser

from medfusion_monai.studio.access import Access, AccessMiddleware, is_loopback
from medfusion_monai.studio.api import make_api
from medfusion_monai.studio.pages import add_pages
from medfusion_monai.studio.service import Studio

FORM_BYTES = 2**20
"""What a request may hold beside an uploaded file."""
SECONDS_TO_END = 3
"""That open pages have to close their connections once the server is interrupted."""


class ServerError(ValueError):
    """An address that cannot be served."""


def make_app(studio: Studio, access: Access) -> FastAPI:
    """Return the service with its pages, for requests that bring what ``access`` asks for."""
    app = make_api(studio)
    add_pages(app, studio)
    return guarded(app, studio, access)


def guarded(app: FastAPI, studio: Studio, access: Access) -> FastAPI:
    """Let a service refuse requests without what ``access`` asks for, and larger ones than the limits allow."""
    most_bytes = studio.limits.upload_bytes + FORM_BYTES
    # Larger parts of forms would become files on the disk. Nothing is larger: larger requests are refused.
    MultiPartParser.spool_max_size = most_bytes
    app.add_middleware(AccessMiddleware, access=access, most_bytes=most_bytes)
    return app


def serve(studio: Studio, listening: socket.socket, host: str, token: str | None, name: str | None = None) -> None:
    """Serve a studio until it is interrupted, and close it.

    Args:
        studio: with the model.
        listening: of ``listen``.
        host: as the user named it.
        token: that requests must bring; None for all.
        name: under which a proxy passes requests on; None without one.
    """
    port = listening.getsockname()[1]
    app = make_app(studio, Access(token, host, port, name))
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=SECONDS_TO_END
    )
    if not is_loopback(host):
        print(f"Warning: other machines reach {host}. Whoever knows the token uses the model; nothing is encrypted.")
    print(f"Medfusion studio: {address(host, port, token)}")
    if name is not None:
        print(f"By the proxy: https://{name}/?token={token}")
    print("Ctrl+C ends it.", flush=True)
    warnings.filterwarnings("ignore", "`torch.distributed.reduce_op`")  # NiceGUI looks at all objects at its start
    with suppress(KeyboardInterrupt):  # which uvicorn raises again at its end
        StudioServer(config, studio).run(sockets=[listening])


class StudioServer(uvicorn.Server):
    """A server that ends its jobs before it waits for the requests behind them.

    Args:
        config: of the server.
        studio: closed at the end.
    """

    def __init__(self, config: uvicorn.Config, studio: Studio) -> None:
        super().__init__(config)
        self.studio = studio

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the studio and end."""
        await asyncio.to_thread(self.studio.close)
        await super().shutdown(sockets)


def address(host: str, port: int, token: str | None) -> str:
    """Return the address of the pages, with the token."""
    name = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


def listen(host: str, port: int, without_token: bool = False, name: str | None = None) -> socket.socket:
    """Return a socket that is bound to an address.

    Args:
        host: address to listen on.
        port: likewise; 0 for one that is free.
        without_token: whether all requests are to be served.
        name: under which a proxy passes requests on; None without one.

    Raises:
        ServerError: if the address is in use, forbidden, not one of this machine, or open to other machines without a
            token.
    """
    if without_token and not is_loopback(host):
        raise ServerError(f"--no-token is possible on 127.0.0.1 only, for other machines reach {host}: leave it out")
    if without_token and name is not None:
        raise ServerError(f"--no-token is not possible with --name, for other machines reach {name}: leave it out")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServerError(f"--host {host} is not an address: {error.strerror}. Use 127.0.0.1") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen()
    except OSError as error:
        listening.close()
        raise ServerError(_reason(error, host, port)) from error
    return listening


def _reason(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is in use, perhaps by another studio: choose another with --port {port + 1}, or "
            "end that program"
        )
    if error.errno == errno.EACCES:
        return f"port {port} is reserved for the system: choose one above 1023, e.g. --port 7860"
    return f"cannot listen on {host}, port {port}: {error.strerror}. Use an address of this machine, e.g. 127.0.0.1"

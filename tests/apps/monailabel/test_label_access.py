import asyncio
import socket

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from medfusion_monai.apps.monailabel.label_access import OwnPagesMiddleware
from medfusion_monai.studio.access import Access

VIEWER = "https://viewer.example.org"


def status(headers, host="127.0.0.1", kind="http"):
    """Return the status, or type, of the answer to a request with these headers."""
    service = Starlette(routes=[Route("/", lambda request: PlainTextResponse("study"), methods=["POST"])])
    guarded = OwnPagesMiddleware(service, Access(None, host, 8000), [VIEWER])
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "method": "POST", "path": "/", "query_string": b"", "headers": raw}
    sent = []

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    asyncio.run(guarded(scope, receive, send))
    return sent[0].get("status", sent[0]["type"])


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000"])
def test_programs_and_own_pages_are_answered(host):
    assert status({"host": host}) == 200
    assert status({"host": host, "origin": f"http://{host}"}) == 200


@pytest.mark.parametrize("host", ["evil.example.org:8000", "127.0.0.1.evil.example.org", "", "[::1"])
def test_name_that_is_not_the_servers_is_refused(host):
    assert status({"host": host}) == 400
    assert status({"host": host, "origin": f"http://{host}"}) == 400


@pytest.mark.parametrize("origin", ["https://evil.example.org", "null", "http://127.0.0.1:9000"])
def test_pages_of_other_sites_are_refused(origin):
    assert status({"host": "127.0.0.1:8000", "origin": origin}) == 403
    assert status({"host": "127.0.0.1:8000", "origin": origin}, kind="websocket") == "websocket.close"


def test_pages_of_an_allowed_site_are_answered():
    assert status({"host": "127.0.0.1:8000", "origin": VIEWER}) == 200


@pytest.mark.parametrize("name", ["10.0.0.7:8000", f"{socket.gethostname()}:8000", "127.0.0.1:8000"])
def test_server_on_all_addresses_answers_under_those_and_the_name_of_the_machine(name):
    assert status({"host": name}, "0.0.0.0") == 200
    assert status({"host": "evil.example.org:8000"}, "0.0.0.0") == 400


def test_server_on_one_address_answers_under_it():
    assert status({"host": "pacs.example.org:8000"}, "pacs.example.org") == 200
    assert status({"host": "10.0.0.7:8000"}, "pacs.example.org") == 400

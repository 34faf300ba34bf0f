"""Who may use a studio: the token, the names of the server, the size of requests, what browsers may load."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from medfusion_monai.studio.access import Access, AccessMiddleware, is_loopback, new_token

TOKEN = "right-token"
HOST = "http://127.0.0.1:7860"


async def echo(request):
    return PlainTextResponse(f"{len(await request.body())} {request.query_params}")


async def socket(websocket):
    await websocket.accept()
    await websocket.send_text("connected")
    await websocket.close()


def client_of(access, **options):
    paths = ("/", "/health", "/model", "/_nicegui/1/static/a.js")
    routes = [Route(path, echo, methods=["GET", "POST"]) for path in paths]
    app = Starlette(routes=[*routes, WebSocketRoute("/ws", socket)])
    app.add_middleware(AccessMiddleware, access=access, most_bytes=100)
    return TestClient(app, **{"base_url": HOST, "follow_redirects": False, **options})


@pytest.fixture
def client():
    return client_of(Access(TOKEN, "127.0.0.1", 7860))


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        bearer(""),
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": f"medfusion_studio_7861={TOKEN}"},
    ],
    ids=["none", "wrong", "empty", "another scheme", "of another port"],
)
def test_a_request_without_the_token_is_refused_with_advice(client, headers):
    answer = client.get("/model", headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "open the address that medfusion studio printed" in answer.json()["detail"]


@pytest.mark.parametrize("headers", [bearer(TOKEN), {"Cookie": f"medfusion_studio_7860={TOKEN}"}])
def test_a_request_with_the_token_is_answered(client, headers):
    assert client.get("/model", headers=headers).status_code == 200


def test_a_token_that_is_not_ascii_is_refused(client):
    assert client.get("/model", params={"token": "größer"}).status_code == 401


def test_the_token_of_an_address_becomes_a_cookie_and_leaves_the_address(client):
    answer = client.get("/model", params={"token": TOKEN, "page": "1"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/model?page=1")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/model").status_code == 200


def test_a_wrong_token_of_an_address_sets_no_cookie(client):
    answer = client.get("/", params={"token": "wrong"})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


def test_the_token_does_not_lead_to_another_host(client):
    answer = client.get(HOST + "//elsewhere.example/x", params={"token": TOKEN})
    assert answer.headers["location"] == "/elsewhere.example/x"


def test_health_needs_no_token(client):
    assert client.get("/health").status_code == 200


def test_a_browser_without_the_token_reads_a_sentence(client):
    answer = client.get("/", headers={"Accept": "text/html"})
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text.startswith("Medfusion studio: a token is needed")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "localhost.", "[::"]
)
def test_a_request_under_another_name_is_refused_even_with_the_token(client, host):
    answer = client.get("/health", headers={**bearer(TOKEN), "Host": host})
    assert answer.status_code == 400
    assert "another name" in answer.json()["detail"]


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:9000", "LOCALHOST", "[::1]:7860"])
def test_a_request_under_a_name_of_this_machine_is_answered(client, host):
    assert client.get("/model", headers={**bearer(TOKEN), "Host": host}).status_code == 200


def test_a_server_on_one_address_answers_to_it_and_a_server_on_all_to_any():
    one, everywhere = Access(TOKEN, "192.168.1.5", 7860), Access(TOKEN, "0.0.0.0", 7860)
    assert one.is_known_host("192.168.1.5:7860")
    assert not one.is_known_host("192.168.1.6:7860")
    assert everywhere.is_known_host("workstation.hospital.example:7860")
    assert not Access(None, "0.0.0.0", 7860).is_known_host("evil.example")


def test_a_server_behind_a_proxy_answers_to_its_name_and_to_pages_of_it():
    client = client_of(Access(TOKEN, "127.0.0.1", 7860, "studio.hospital.example"))
    named = {**bearer(TOKEN), "Host": "studio.hospital.example"}
    assert client.post("/model", headers={**named, "Origin": "https://studio.hospital.example"}).status_code == 200
    assert client.post("/model", headers={**named, "Origin": "https://hospital.example"}).status_code == 403
    assert client.get("/model", headers={**named, "Host": "hospital.example"}).status_code == 400
    assert client.get("/model", headers=bearer(TOKEN)).status_code == 200


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_cookie_of_an_encrypted_page_never_travels_unencrypted(scheme):
    client = client_of(Access(TOKEN, "127.0.0.1", 7860), base_url=f"{scheme}://127.0.0.1:7860")
    cookie = client.get("/", params={"token": TOKEN}).headers["set-cookie"]
    assert ("Secure" in cookie) == (scheme == "https")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:7861", "http://localhost:7860"])
def test_a_page_of_another_address_cannot_use_the_cookie_of_a_user(client, origin):
    answer = client.post("/model", headers={**bearer(TOKEN), "Origin": origin})
    assert answer.status_code == 403


def test_a_page_of_the_server_itself_is_answered(client):
    assert client.post("/model", headers={**bearer(TOKEN), "Origin": HOST}).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, bearer("wrong"), {**bearer(TOKEN), "Origin": "http://evil.example"}, {"Host": "evil.example"}]
)
def test_a_web_socket_needs_the_same(client, headers):
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws", headers=headers):
        pass


def test_a_web_socket_with_the_token_connects(client):
    with client.websocket_connect("/ws", headers={**bearer(TOKEN), "Host": "127.0.0.1:7860"}) as connected:
        assert connected.receive_text() == "connected"


def test_without_a_token_all_requests_of_this_machine_are_answered():
    client = client_of(Access(None, "127.0.0.1", 7860))
    assert client.get("/model").status_code == 200
    assert client.get("/", params={"token": "old"}).headers["location"] == "/"
    assert client.get("/model", headers={"Host": "evil.example"}).status_code == 400


def test_a_request_that_announces_too_much_is_refused(client):
    answer = client.post("/model", headers=bearer(TOKEN), content=bytes(101))
    assert (answer.status_code, client.post("/model", headers=bearer(TOKEN), content=bytes(100)).text) == (413, "100 ")


def test_a_request_that_sends_too_much_without_announcing_it_is_refused(client):
    answer = client.post("/model", headers=bearer(TOKEN), content=iter([bytes(60), bytes(60)]))
    assert answer.status_code == 413


def test_answers_forbid_browsers_to_load_from_elsewhere_and_to_keep_them(client):
    for path in ("/model", "/nowhere", "/health"):
        headers = client.get(path, headers=bearer(TOKEN)).headers
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "http" not in headers["content-security-policy"]
        assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
    refused = client.get("/model").headers
    assert "content-security-policy" in refused
    assert "no-store" not in client.get("/_nicegui/1/static/a.js", headers=bearer(TOKEN)).headers.get(
        "cache-control", ""
    )


def test_tokens_are_long_and_differ():
    assert len(new_token()) >= 43
    assert new_token() != new_token()


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback_is_known(host, expected):
    assert is_loopback(host) is expected

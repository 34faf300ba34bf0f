"""A studio as a program on a port of this machine."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urljoin

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

import medfusion_monai as mf
from medfusion_monai.cli import main
from medfusion_monai.studio.access import Access
from medfusion_monai.studio.api import make_api
from medfusion_monai.studio.server import ServerError, StudioServer, address, guarded, listen
from medfusion_monai.studio.service import Studio

LOADED = re.compile(r"""(?:src|href|import\(|url\(|from|:)\s*=?\s*["'](https?://[^"']+|//[^"']+)["']""")
PATHS = re.compile(r"""["'(](/_nicegui/[^"')]+\.(?:js|css|mjs))["')]""")


def started(weights, folder, *options):
    """Start ``medfusion studio`` on a free port, and return the program and its address."""
    command = [sys.executable, "-m", "medfusion_monai", "studio", "--model", str(weights), "--port", "0", *options]
    program = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    line = program.stdout.readline()
    assert line.startswith("Medfusion studio: http://127.0.0.1:"), line + program.stdout.read()
    return program, line.split()[-1]


def ended(program):
    """Interrupt a program as Ctrl+C does, and return its exit code and what it printed."""
    program.send_signal(signal.SIGINT)
    with program.stdout as output:
        return program.wait(60), output.read()


@pytest.fixture(scope="module")
def served(weights, tmp_path_factory):
    """Two studios of one folder, with their addresses and the folder that they run in."""
    folder = tmp_path_factory.mktemp("here")
    studios = [started(weights, folder) for _ in range(2)]
    yield [place for _, place in studios], folder
    assert [ended(program) for program, _ in studios] == [(0, "Ctrl+C ends it.\n")] * 2


@pytest.fixture
def own_server(weights):
    """A studio of its own, its queue served on a port by a thread, and the address."""
    studio = Studio(mf.load(weights, "cpu"))
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        app = guarded(make_api(studio), studio, Access("token", "127.0.0.1", port))
        server = StudioServer(uvicorn.Config(app, log_level="warning"), studio)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield studio, server, f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def slow_request(place):
    """Return what sends a request that takes long; the test ends it."""
    body = {"label": 1, "count": 64, "num_inference_steps": 250, "batch_size": 1}
    return lambda: httpx.post(f"{place}/samples", json=body, headers={"Authorization": "Bearer token"}, timeout=60)


def until(condition):
    """Wait until a condition holds, at most a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running_job(studio):
    until(lambda: studio.jobs._running is not None)
    return studio.jobs._running


def test_without_a_token_no_proxy_may_pass_requests_on():
    with pytest.raises(ServerError, match="--no-token is not possible with --name, for other machines reach a.example"):
        listen("127.0.0.1", 0, without_token=True, name="a.example")


def test_a_request_whose_client_hangs_up_ends(own_server):
    studio, _, place = own_server
    host, port = place.removeprefix("http://").split(":")
    body = b'{"label": 1, "count": 64, "num_inference_steps": 250}'
    head = f"POST /samples HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer token\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + body)
        job = running_job(studio)
    assert job.wait(60)
    assert job.state == "cancelled"


def test_a_server_that_is_interrupted_answers_the_requests_that_it_ends(own_server):
    studio, server, place = own_server
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(slow_request(place))
        running_job(studio)
        server.should_exit = True
        assert answer.result(60).status_code == 503


@pytest.mark.slow
def test_two_studios_of_one_folder_sample_the_same_and_write_nothing(served, weights):
    places, folder = served
    before = sorted(path.name for path in weights.parent.iterdir())
    answers = []
    for place in places:
        token = {"Authorization": f"Bearer {place.partition('token=')[2]}"}
        answer = httpx.post(urljoin(place, "/samples"), json={"label": 1, "seed": 2}, headers=token, timeout=60)
        assert answer.status_code == 200
        answers.append(answer.content)
    assert answers[0] == answers[1]
    assert not list(folder.iterdir())
    assert sorted(path.name for path in weights.parent.iterdir()) == before


@pytest.mark.slow
def test_the_pages_and_all_that_they_load_come_from_the_studio_alone(served):
    places, _ = served
    with httpx.Client(follow_redirects=True) as browser:
        page = browser.get(places[0])
        assert page.status_code == 200
        assert "token=" not in str(page.url)
        assert not LOADED.findall(page.text)
        paths = set(PATHS.findall(page.text))
        assert len(paths) > 3
        for path in paths:
            assert browser.get(urljoin(places[0], path)).status_code == 200, path
    assert httpx.get(urljoin(places[0], min(paths))).status_code == 401


@pytest.mark.slow
def test_a_web_page_elsewhere_cannot_reach_the_studio_by_a_name_of_its_own(served):
    place = served[0][0]
    token = place.partition("token=")[2]
    answer = httpx.get(place, headers={"Host": "evil.example", "Authorization": f"Bearer {token}"})
    assert answer.status_code == 400


def test_uploads_up_to_the_limit_stay_in_memory_whatever_their_size(studio):
    app = FastAPI()

    @app.post("/upload")
    async def upload(request: Request) -> list[bool]:
        async with request.form() as form:
            return [part.file._rolled for part in form.values()]

    guarded(app, studio, Access(None, "127.0.0.1", 7860))
    client = TestClient(app, base_url="http://127.0.0.1:7860")
    assert client.post("/upload", files={"file": bytes(studio.limits.upload_bytes)}).json() == [False]
    assert client.post("/upload", files={"file": bytes(studio.limits.upload_bytes + 2**20)}).status_code == 413


def test_a_port_in_use_is_named_with_advice(weights, capsys):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["studio", "--model", str(weights), "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 is in use, perhaps by another studio: choose another with --port" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("host", "port", "without_token", "message"),
    [
        ("0.0.0.0", 0, True, "--no-token is possible on 127.0.0.1 only, for other machines reach 0.0.0.0"),
        ("192.0.2.1", 0, False, "cannot listen on 192.0.2.1, port 0: .* Use an address of this machine"),
        ("not a host", 0, False, "--host not a host is not an address: .* Use 127.0.0.1"),
    ],
)
def test_an_address_that_cannot_be_served_is_refused(host, port, without_token, message):
    with pytest.raises(ServerError, match=message):
        listen(host, port, without_token)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may use all ports")
def test_a_port_of_the_system_is_refused():
    with pytest.raises(ServerError, match="port 80 is reserved for the system"):
        listen("127.0.0.1", 80)


def test_a_port_is_free_again_once_its_studio_ended():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
    with listen("127.0.0.1", port) as again:
        assert again.getsockname() == ("127.0.0.1", port)
        assert again.family is socket.AF_INET


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:7860/?token=abc"),
        ("0.0.0.0", "http://localhost:7860/?token=abc"),
        ("::1", "http://[::1]:7860/?token=abc"),
    ],
)
def test_the_address_can_be_opened(host, expected):
    assert address(host, 7860, "abc") == expected
    assert address(host, 7860, None) == expected.partition("?")[0]


def test_without_the_extra_the_command_names_what_to_install(capsys, monkeypatch, weights):
    monkeypatch.setitem(sys.modules, "nicegui", None)
    assert main(["studio", "--model", str(weights)]) == 2
    assert "nicegui is not installed: pip install -e '.[studio]' in a clone" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["70000", "-1", "http"])
def test_a_port_that_is_none_is_refused(port, capsys):
    with pytest.raises(SystemExit):
        main(["studio", f"--port={port}"])
    assert "is not a port from 0 to 65535" in capsys.readouterr().err


def test_missing_weights_are_named(tmp_path, capsys):
    assert main(["studio", "--model", str(tmp_path), "--port", "0"]) == 2
    assert f"weights {tmp_path}/model.pt do not exist" in capsys.readouterr().err


def test_the_package_loads_no_web_framework():
    names = "fastapi", "nicegui", "uvicorn"
    code = (
        f"import sys, medfusion_monai.cli as cli; cli.build_parser(); print([n for n in {names} if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

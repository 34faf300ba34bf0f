"""What a real server of MONAI Label leaves of its clients' files."""

import json
import sys

import pytest
import requests

pytest.importorskip("monailabel", reason="make test-monailabel has MONAI Label")

from label_studies import BUNDLES, SIZE, environment, write_studies
from local_servers import LOCAL, free_port, running
from tiny_models import save, tiny

pytestmark = pytest.mark.slow


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_nothing_of_refused_requests_stays_and_nothing_at_all_after_sigterm(tmp_path):
    names, channels = BUNDLES["cxr"]
    model, studies, files = tmp_path / "model.pt", tmp_path / "studies", tmp_path / "tmp"
    save(tiny(names, channels, SIZE), model)
    studies.mkdir()
    files.mkdir()
    write_studies(studies, channels)
    port, elsewhere = free_port(), tmp_path / "elsewhere"
    address = f"http://{LOCAL}:{port}"
    command = [sys.executable, "-m", "medfusion_monai", "label", "--model", str(model)]
    command += ["--studies", str(studies), "--port", str(port)]
    variables = {**environment(), "TMPDIR": str(files), "MONAI_LABEL_SESSION_PATH": str(elsewhere)}

    def post(task, params="{}", **uploads):
        opened = {name: (path.name, path.read_bytes()) for name, path in uploads.items()}
        answer = requests.post(f"{address}/infer/{task}", files=opened, data={"params": params}, timeout=120)
        assert answer.status_code < 500, answer.text
        return answer

    with running(command, f"{address}/info/", tmp_path / "server.log", 1200, env=variables) as process:
        (own,) = files.glob("medfusion_label_*")
        assert own.stat().st_mode & 0o077 == 0
        before = files_in(own / "files")  # of the log
        assert post("classify", file=studies / "plain.png").ok
        refused = [
            post("classify", file=studies / "notes.png"),
            post("classify", file=studies / "ct.dcm"),
            post("segment", file=studies / "plain.png"),
            post("classify", "{", file=studies / "plain.png"),
            post("classify", "5", file=studies / "plain.png"),
            post("inpaint", file=studies / "plain.png", label=studies / "notes.png"),
            post("reconstruct", json.dumps({"result_extension": "/../x.png"}), file=studies / "plain.png"),
            post("reconstruct", json.dumps({"result_extension": [1]}), file=studies / "plain.png"),
            post("reconstruct", json.dumps({"result_dtype": ["uint8"]}), file=studies / "plain.png"),
            post("inpaint?image=plain", json.dumps({"label": ["a"]})),
            post("classify?image=plain", json.dumps({"image": [1]})),
            post("classify?image=plain", json.dumps({"image": str(tmp_path / "server.log")})),
            post("classify?image=plain", json.dumps({"model": ["classify"]})),
        ]
        assert {answer.status_code for answer in refused} <= {400, 404}, [answer.text for answer in refused]
        assert not [answer.text for answer in refused[:11] if str(tmp_path) in answer.text]
        assert files_in(own / "files") == before
        uploads = {"files": ("plain.png", (studies / "plain.png").read_bytes())}
        requests.put(f"{address}/session/", files=uploads, timeout=60).raise_for_status()
        assert "plain.png" in files_in(own / "sessions")
        process.terminate()
        assert process.wait(60) == 143
    assert list(files.iterdir()) == []
    assert not elsewhere.exists()

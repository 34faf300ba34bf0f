"""Sending DICOM files: to servers of this test on the loopback address, and (slow) to Orthanc."""

import csv
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from local_servers import LOCAL, free_port, running_orthanc
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt

from medfusion_monai.cli import main
from medfusion_monai.export import pacs
from medfusion_monai.sampling.dicom_format import KINDS
from medfusion_monai.sampling.image_formats import FORMATS


@pytest.fixture
def samples(tmp_path):
    """A folder of six DICOM files of two classes."""
    folder = tmp_path / "samples"
    folder.mkdir()
    for number in range(6):
        label = number % 2
        note = {"file": f"{label}_{number}", "label": label, "class_name": "ab"[label], "seed": number}
        image = np.random.default_rng(number).random((1, 16, 24), dtype=np.float32)
        (folder / f"{label}_{number:05}.dcm").write_bytes(FORMATS["dicom"].encode(image, note))
    return folder


class Receiver:
    """A DICOM server that stores, refuses or vanishes after some files."""

    def __init__(self, refuse_after=None, vanish_after=None):
        self.files, self.limits, self.server = [], (refuse_after, vanish_after), None

    def __enter__(self):
        entity = AE(ae_title="STORE")
        for kind in KINDS.values():
            entity.add_supported_context(kind.sop_class, ExplicitVRLittleEndian)
        self.server = entity.start_server((LOCAL, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self.store)])
        return self

    def __exit__(self, *error):
        self.server.shutdown()

    @property
    def address(self):
        return f"dicom://STORE@{LOCAL}:{self.server.socket.getsockname()[1]}"

    def store(self, event):
        refuse, vanish = self.limits
        if refuse is not None and len(self.files) >= refuse:
            return 0xA700
        if vanish is not None and len(self.files) >= vanish:
            event.assoc.abort()
            return 0x0000
        self.files.append(event.dataset)
        return 0x0000


@pytest.fixture
def web():
    """A DICOMweb server that keeps bodies and answers with a given status after some."""
    state = {"bodies": [], "status_after": None, "authorization": [], "page": False}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state["authorization"].append(self.headers.get("Authorization"))
            limit = state["status_after"]
            if limit is not None and len(state["bodies"]) >= limit[0]:
                self.send_response(limit[1])
                self.end_headers()
                return
            state["bodies"].append((self.path, self.headers["Content-Type"], body))
            file = dcmread(BytesIO(body[body.index(b"\r\n\r\n") + 4 :]), stop_before_pixels=True)
            stored = {"00081155": {"vr": "UI", "Value": [file.SOPInstanceUID]}}
            answer = json.dumps({"00081199": {"vr": "SQ", "Value": [stored]}}).encode()
            kind = "text/html" if state["page"] else "application/dicom+json"
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(b"<html>log in</html>" if state["page"] else answer)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer((LOCAL, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state["url"] = f"http://{LOCAL}:{server.server_port}/dicom-web"
    yield state
    server.shutdown()
    server.server_close()


def listed(samples):
    with open(samples / "sent.csv", newline="") as file:
        return [row["file"] for row in csv.DictReader(file)]


def names(samples):
    return sorted(path.name for path in samples.glob("*.dcm"))


def test_dicom_server_gets_every_file_as_it_is(samples, capsys):
    with Receiver() as receiver:
        assert main(["send", str(samples), "--to", receiver.address]) == 0
        assert "6 files sent" in capsys.readouterr().out
        sent = {file.SOPInstanceUID: file for file in receiver.files}
    for path in samples.glob("*.dcm"):
        file = dcmread(path)
        assert sent[file.SOPInstanceUID].PixelData == file.PixelData
        assert sent[file.SOPInstanceUID][0x0008001C].value == "YES"
    assert listed(samples) == names(samples)


def test_dicomweb_server_gets_every_file_as_it_is(samples, web):
    assert pacs.send(samples, web["url"]) == 6
    assert {path for path, _, _ in web["bodies"]} == {"/dicom-web/studies"}
    assert all("multipart/related" in kind and "application/dicom" in kind for _, kind, _ in web["bodies"])
    for path, (_, _, body) in zip(sorted(samples.glob("*.dcm")), web["bodies"], strict=True):
        assert dcmread(path).PixelData in body
    assert listed(samples) == names(samples)


@pytest.mark.parametrize("limits", [{"refuse_after": 2}, {"vanish_after": 2}])
def test_what_a_dicom_server_stored_is_listed_and_a_rerun_sends_the_rest(samples, limits, capsys):
    with Receiver(**limits) as receiver:
        address = receiver.address
        assert main(["send", str(samples), "--to", address]) == 2
        error = capsys.readouterr().err
        assert "has 2 of 6 files" in error
        assert "The same command sends the rest" in error
        if "refuse_after" in limits:
            assert "0xa700" in error
        assert listed(samples) == names(samples)[:2]
        receiver.limits = (None, None)
        assert main(["send", str(samples), "--to", address]) == 0
        assert "4 files sent" in capsys.readouterr().out
        assert len(receiver.files) == 6
        assert main(["send", str(samples), "--to", address]) == 0
        assert len(receiver.files) == 6


@pytest.mark.parametrize(("status", "words"), [(409, "HTTP 409"), (401, "MEDFUSION_PACS_PASSWORD"), (503, "HTTP 503")])
def test_what_a_dicomweb_server_stored_is_listed_and_a_rerun_sends_the_rest(samples, web, status, words):
    web["status_after"] = (3, status)
    with pytest.raises(pacs.PacsError, match="has 3 of 6 files") as caught:
        pacs.send(samples, web["url"])
    assert words in str(caught.value)
    assert listed(samples) == names(samples)[:3]
    web["status_after"] = None
    assert pacs.send(samples, web["url"]) == 3
    assert listed(samples) == names(samples)


def test_another_server_gets_all_files(samples, web):
    with Receiver() as receiver:
        assert pacs.send(samples, receiver.address) == 6
    assert pacs.send(samples, web["url"]) == 6


def test_password_and_token_come_from_the_environment(samples, web, monkeypatch):
    with pytest.raises(pacs.PacsError, match="needs a password: set MEDFUSION_PACS_PASSWORD"):
        pacs.send(samples, web["url"], user="anna")
    monkeypatch.setenv("MEDFUSION_PACS_PASSWORD", "secret")
    pacs.send(samples, web["url"], user="anna")
    assert all(given.startswith("Basic ") for given in web["authorization"])
    (samples / "sent.csv").unlink()
    web["authorization"].clear()
    monkeypatch.setenv("MEDFUSION_PACS_TOKEN", "abc")
    pacs.send(samples, web["url"])
    assert set(web["authorization"]) == {"Bearer abc"}
    assert "secret" not in (samples / "sent.csv").read_text()


@pytest.mark.parametrize("scheme", ["dicom://STORE@", "http://"])
def test_server_that_is_not_there_is_an_error(samples, scheme, capsys):
    address = f"{scheme}{LOCAL}:{free_port()}" + ("/dicom-web" if scheme == "http://" else "")
    assert main(["send", str(samples), "--to", address]) == 2
    error = capsys.readouterr().err
    assert "has 0 of 6 files" in error
    assert "nothing answers there" in error or "no answer of a DICOMweb service" in error


@pytest.mark.parametrize(
    "address",
    [
        "pacs",
        "ftp://host/x",
        "dicom://host:104",
        "dicom://A@host",
        "https://",
        "dicom://A@h:x",
        f"dicom://{17 * 'A'}@h:1",
    ],
)
def test_addresses_of_another_kind_are_refused(samples, address):
    with pytest.raises(pacs.PacsError, match="--to must be the root of a DICOMweb service"):
        pacs.send(samples, address)


def test_files_that_are_not_marked_as_synthetic_are_never_sent(samples, web):
    path = samples / "0_00000.dcm"
    file = dcmread(path)
    del file[0x0008001C]
    file.save_as(path)
    with pytest.raises(pacs.PacsError, match="1 of 6 files .* not marked as synthetic.*0_00000.dcm"):
        pacs.send(samples, web["url"])
    assert web["bodies"] == []


def test_edited_images_are_sent_only_where_it_is_said(samples, web, capsys):
    note = {"file": "a", "label": 1, "class_name": "b", "edit": "counterfactual", "source_pixels": "ab"}
    (samples / "edited.dcm").write_bytes(FORMATS["dicom"].encode(np.zeros((1, 8, 8), np.float32), note))
    assert main(["send", str(samples), "--to", web["url"]]) == 2
    error = capsys.readouterr().err
    assert "1 of 7 files are edited images" in error
    assert "Add --edited" in error
    assert web["bodies"] == []
    assert not (samples / "sent.csv").exists()
    assert main(["send", str(samples), "--to", web["url"], "--edited"]) == 0
    assert len(web["bodies"]) == 7


def test_answer_that_is_not_of_dicomweb_is_no_success(samples, web):
    web["page"] = True
    with pytest.raises(pacs.PacsError, match="did not confirm that it stored"):
        pacs.send(samples, web["url"])
    assert not (samples / "sent.csv").exists()


@pytest.mark.parametrize("status", [301, 302, 307])
def test_redirections_are_not_followed(samples, web, status):
    web["status_after"] = (0, status)
    with pytest.raises(pacs.PacsError):
        pacs.send(samples, web["url"])
    assert not (samples / "sent.csv").exists()


@pytest.mark.parametrize("part", ["anna:secret@", "anna@"])
def test_password_in_the_address_is_refused_and_kept_nowhere(samples, web, part):
    with pytest.raises(pacs.PacsError, match="name the --user") as caught:
        pacs.send(samples, web["url"].replace("http://", f"http://{part}"))
    assert "secret" not in str(caught.value)
    assert not (samples / "sent.csv").exists()


def test_password_goes_unencrypted_to_this_machine_alone(samples, monkeypatch):
    monkeypatch.setenv("MEDFUSION_PACS_PASSWORD", "secret")
    with pytest.raises(pacs.PacsError, match="use https://"):
        pacs.send(samples, "http://pacs.example/dicom-web", user="anna")


def test_replaced_file_is_sent_and_a_damaged_one_is_not(samples, web):
    pacs.send(samples, web["url"])
    path = samples / "0_00000.dcm"
    note = {"file": "0_0", "label": 0, "class_name": "a", "seed": 99}
    path.write_bytes(FORMATS["dicom"].encode(np.zeros((1, 16, 24), np.float32), note))
    assert pacs.send(samples, web["url"]) == 1
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(pacs.PacsError, match="1 of 6 files in .* are damaged, e.g. .*0_00000.dcm"):
        pacs.send(samples, web["url"])


def test_files_that_two_servers_have_are_sent_to_neither_again(samples, web):
    with Receiver() as receiver:
        for address, count in ((receiver.address, 6), (web["url"], 6), (receiver.address, 0), (web["url"], 0)):
            assert pacs.send(samples, address) == count


def test_folder_without_dicom_files_is_an_error(tmp_path):
    with pytest.raises(pacs.PacsError, match="--output_format dicom"):
        pacs.send(tmp_path, "http://127.0.0.1:1/x")


def test_missing_library_is_named_with_the_way_to_get_it(samples, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynetdicom", None)
    with pytest.raises(pacs.PacsError, match=r"pip install -e '\.\[pacs\]' in a clone"):
        pacs.send(samples, f"dicom://STORE@{LOCAL}:{free_port()}")


@pytest.fixture
def orthanc(tmp_path):
    """A real PACS on the loopback address: (DICOMweb address, C-STORE address)."""
    with running_orthanc(tmp_path) as addresses:
        yield addresses


@pytest.mark.slow
@pytest.mark.parametrize("way", ["dicomweb", "association"])
@pytest.mark.parametrize("kind", KINDS)
def test_orthanc_stores_finds_and_returns_the_same_pixels(orthanc, way, kind, tmp_path, monkeypatch):
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(3):
        note = {"file": str(number), "label": number % 2, "class_name": "ab"[number % 2], "seed": number}
        image = np.random.default_rng(number).random((KINDS[kind].channels[0], 32, 24), dtype=np.float32)
        (folder / f"{number}.dcm").write_bytes(FORMATS[kind].encode(image, note))
    monkeypatch.setenv("MEDFUSION_PACS_PASSWORD", "secret")
    web, association = orthanc
    assert pacs.send(folder, web if way == "dicomweb" else association, user="anna") == 3
    session = requests.Session()
    session.auth = ("anna", "secret")
    client = DICOMwebClient(web, session=session)
    (study,) = client.search_for_studies()
    uid = study["0020000D"]["Value"][0]
    assert len(client.search_for_series(uid)) == 2
    returned = {file.SOPInstanceUID: file for file in client.retrieve_study(uid)}
    assert len(returned) == 3
    for path in folder.glob("*.dcm"):
        file = dcmread(path)
        assert np.array_equal(returned[file.SOPInstanceUID].pixel_array, file.pixel_array)
        assert returned[file.SOPInstanceUID][0x0008001C].value == "YES"


@pytest.mark.slow
def test_orthanc_refuses_a_wrong_password(orthanc, samples, monkeypatch):
    monkeypatch.setenv("MEDFUSION_PACS_PASSWORD", "wrong")
    with pytest.raises(pacs.PacsError, match="HTTP 401"):
        pacs.send(samples, orthanc[0], user="anna")

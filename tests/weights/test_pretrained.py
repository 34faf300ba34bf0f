import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from medfusion_monai.cli import main
from medfusion_monai.weights import pretrained

CONTENT = b"the weights of a network" * 100_000  # more than a block
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty weights folder, with one known file that no server offers."""
    monkeypatch.setenv("MEDFUSION_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    known = pretrained.PretrainedFile("net.pth", SHA256, 2, "http://127.0.0.1:1/net.pth", "tests")
    monkeypatch.setattr(pretrained, "KNOWN", {"net": known})
    return tmp_path / "weights"


@pytest.fixture
def serve(folder, monkeypatch):
    """Serve these bytes as the known file."""
    servers = []

    def start(content, length=None):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if content else 404)
                self.send_header("Content-Length", str(length or len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_port}/net.pth"
        monkeypatch.setitem(pretrained.KNOWN, "net", pretrained.KNOWN["net"]._replace(url=url))

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def brought_in(tmp_path, content=CONTENT, name="from_usb.bin"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_added_file_is_found(folder, tmp_path):
    assert pretrained.add(brought_in(tmp_path)) == ("net", folder / "net.pth")
    assert pretrained.find("net").read_bytes() == CONTENT


def test_adding_again_and_from_its_place_changes_nothing(folder, tmp_path):
    pretrained.add(brought_in(tmp_path))
    assert pretrained.add(folder / "net.pth") == ("net", folder / "net.pth")
    assert [path.name for path in folder.iterdir()] == ["net.pth"]


def test_added_file_replaces_a_damaged_one(folder, tmp_path):
    folder.mkdir()
    (folder / "net.pth").write_bytes(CONTENT[:-1])
    pretrained.add(brought_in(tmp_path))
    assert pretrained.find("net").read_bytes() == CONTENT


def test_unknown_file_is_refused_with_what_was_expected(folder, tmp_path):
    found = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ValueError, match=rf"has SHA-256 {found} and is not one of the known files: net has {SHA256}"):
        pretrained.add(brought_in(tmp_path, b"other"))
    assert not folder.exists()


def test_file_that_was_cut_off_is_called_damaged(folder, tmp_path):
    with pytest.raises(ValueError, match=rf"but net has {SHA256}: it is damaged\. With internet: medfusion weights"):
        pretrained.add(brought_in(tmp_path, CONTENT[:-1], "net.pth"))


def test_missing_file_is_reported_with_how_to_get_it(folder):
    expected = rf"net\.pth does not exist\. With internet: .* fetch net\. Without: .*{SHA256}.* weights add net\.pth"
    with pytest.raises(ValueError, match=expected):
        pretrained.find("net")


def test_damaged_file_is_not_found(folder):
    folder.mkdir()
    (folder / "net.pth").write_bytes(CONTENT + b".")
    found = hashlib.sha256(CONTENT + b".").hexdigest()
    with pytest.raises(ValueError, match=rf"have SHA-256 {found}, expected {SHA256}"):
        pretrained.find("net")


def test_unknown_name_lists_the_known_ones(folder):
    with pytest.raises(ValueError, match="weights 'inception' are not known: choose one of net"):
        pretrained.find("inception")


def test_folder_that_cannot_be_made_is_one_sentence(folder, tmp_path):
    folder.write_text("a file")
    with pytest.raises(ValueError, match="cannot be written: .*set MEDFUSION_WEIGHTS to another folder"):
        pretrained.add(brought_in(tmp_path))


def test_fetched_file_is_found(folder, serve):
    serve(CONTENT)
    assert pretrained.fetch("net") == folder / "net.pth"
    assert pretrained.find("net").read_bytes() == CONTENT


def test_file_that_is_there_is_not_fetched_again(folder, tmp_path):
    pretrained.add(brought_in(tmp_path))
    assert pretrained.fetch("net") == folder / "net.pth"  # no one serves it


@pytest.mark.parametrize(
    ("content", "length", "message"),
    [
        (b"<html>", None, rf"has SHA-256 {hashlib.sha256(b'<html>').hexdigest()}, expected {SHA256}.*is discarded"),
        (CONTENT[:-9], len(CONTENT), "cut off|cannot be fetched"),
        (b"", None, "cannot be fetched: HTTP Error 404"),
        (bytes(4 << 20), None, "sent more than the 2 MiB of this file: it is another one and is discarded"),
    ],
    ids=["web page", "cut off", "not found", "too long"],
)
def test_what_is_not_the_file_is_not_kept(folder, serve, content, length, message):
    serve(content, length)
    with pytest.raises(ValueError, match=message):
        pretrained.fetch("net")
    assert list(folder.iterdir()) == []


def test_error_without_internet_states_what_to_do(folder):
    expected = r"net\.pth cannot be fetched: .*refused.* on another machine, copy it .* run: medfusion weights add"
    with pytest.raises(ValueError, match=expected):
        pretrained.fetch("net")


def test_list_names_each_file_with_its_checksum_and_source(folder, capsys):
    assert main(["weights", "list"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("net           missing")
    assert SHA256 in output
    assert "http://127.0.0.1:1/net.pth" in output
    assert str(folder) in output


def test_verify_lists_what_is_here_and_good(folder, tmp_path, capsys):
    assert main(["weights", "verify"]) == 0
    assert "missing" in capsys.readouterr().out
    assert main(["weights", "add", str(brought_in(tmp_path))]) == 0
    assert capsys.readouterr().out == f"net  {folder / 'net.pth'}\n"
    assert main(["weights", "verify"]) == 0
    assert "good" in capsys.readouterr().out


def test_verify_ends_with_code_two_for_a_damaged_file(folder, capsys):
    folder.mkdir()
    (folder / "net.pth").write_bytes(b"damaged")
    assert main(["weights", "verify"]) == 2
    captured = capsys.readouterr()
    assert "damaged" in captured.out
    assert captured.err.startswith("medfusion: error: damaged: net. With internet: medfusion weights fetch net.")


def test_fetch_prints_the_place(folder, serve, capsys):
    serve(CONTENT)
    assert main(["weights", "fetch", "net"]) == 0
    assert capsys.readouterr().out == f"{folder / 'net.pth'}\n"


def test_checksums_begin_as_the_files_names_say():
    named = [known for known in pretrained.KNOWN.values() if "-" in known.file]
    assert len(named) == 3, "all but DINOv2's"
    for known in named:
        assert known.file.removesuffix(".pth").rsplit("-", 1)[1] == known.sha256[:8]
        assert known.url.endswith(f"/{known.file}")

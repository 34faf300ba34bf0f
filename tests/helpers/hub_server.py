"""A stand-in for the Hugging Face hub on this machine: keeps one repository of files, and serves zips."""

import base64
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest

COMMIT = "0" * 40


class Hub:
    """What was sent to it: ``files`` by path, ``heads`` of cards in YAML, ``tags``; ``zips`` are served by name."""

    def __init__(self):
        self.files, self.heads, self.tags, self.zips = {}, [], [], {}
        self.url = ""

    def api(self):
        """Return a client of the hub."""
        return huggingface_hub.hf_api.HfApi(endpoint=self.url, token="none")

    def answer_post(self, path, body):
        if path == "/api/repos/create":
            named = json.loads(body)
            return {"url": f"{self.url}/{named['organization']}/{named['name']}"}
        if path == "/api/validate-yaml":
            self.heads.append(json.loads(body)["content"])
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return {"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]}
        if "/tag/" in path:
            self.tags.append(json.loads(body)["tag"])
            return {}
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return {"commitUrl": f"{self.url}/x/y/commit/{COMMIT}", "commitOid": COMMIT, "hookOutput": ""}

    def answer_get(self, path):
        if path.endswith("/refs"):
            refs = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": COMMIT} for name in self.tags]
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}
            return {"branches": [main], "tags": refs, "converts": []}
        if "/tree/" in path:
            return [{"type": "file", "path": name, "size": len(self.files[name]), "oid": COMMIT} for name in self.files]
        return {"id": "x/y", "sha": COMMIT, "private": True, "siblings": [{"rfilename": name} for name in self.files]}

    def content(self, path):
        """Return the file that a path of the server names, if any."""
        _, found, name = path.partition("/resolve/")
        return self.files.get(name.partition("/")[2]) if found else self.zips.get(path.removeprefix("/zips/"))


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._send(json.dumps(self.server.hub.answer_post(urlsplit(self.path).path, sent)).encode())

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        content = self.server.hub.content(path)
        if content is None and not path.startswith("/api/"):
            self.send_error(404)
            return
        self._send(json.dumps(self.server.hub.answer_get(path)).encode() if content is None else content)

    do_HEAD = do_GET

    def _send(self, content):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def hub_server():
    """Serve a hub at 127.0.0.1, in the place of the real one, as long as the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = hub = Hub()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    constants, template = huggingface_hub.constants, huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", hub.url)
            patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template[template.index("/{repo_id}") :])
            patch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
            yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""Servers of tests, on the loopback address."""

import json
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest
import requests

LOCAL = "127.0.0.1"
ORTHANC_LOGIN = ("anna", "secret")


def free_port():
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return probe.getsockname()[1]


@contextmanager
def running(command, url, log, seconds=60, auth=None, **options):
    """Run a program until its end is left, from when an address answers; its output goes to a file."""
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **options)
        try:
            deadline = time.monotonic() + seconds
            while not _answers(url, auth):
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.5)
            yield process
        finally:
            process.terminate()
            process.wait(60)


def _answers(url, auth):
    try:
        return requests.get(url, auth=auth, timeout=5).ok
    except requests.RequestException:
        return False


@contextmanager
def running_orthanc(folder):
    """Run a real PACS and give its (DICOMweb address, C-STORE address); skip the test where it is not installed."""
    program = shutil.which("Orthanc")
    if program is None:
        pytest.skip("Orthanc is not installed")
    http, dicom = free_port(), free_port()
    settings = {
        "Name": "TEST",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": http,
        "DicomPort": dicom,
        "DicomAet": "ORTHANC",
        "DicomAlwaysAllowStore": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {ORTHANC_LOGIN[0]: ORTHANC_LOGIN[1]},
        "Plugins": ["/usr/lib/orthanc", "/usr/share/orthanc/plugins"],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    command = [program, str(folder / "orthanc.json")]
    with running(command, f"http://{LOCAL}:{http}/system", folder / "orthanc.log", auth=ORTHANC_LOGIN):
        yield f"http://{LOCAL}:{http}/dicom-web", f"dicom://ORTHANC@{LOCAL}:{dicom}"

"""Starts MONAI Label's server with the app: ``medfusion label``."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from medfusion_monai.apps.monailabel.private_files import private_temporary_files
from medfusion_monai.runtime.values import check_numbers
from medfusion_monai.weights.model_info import require_denoiser

if TYPE_CHECKING:
    from medfusion_monai.model import Model

RELEASE = "0.8.5"


@lru_cache(maxsize=1)
def opened_model(path: str) -> Model:
    """Return the model of a path, loaded once in a process."""
    from medfusion_monai.model import load

    return load(path)


def start_label_server(
    model: str,
    studies: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    user: str | None = None,
    temperature: float | None = None,
    refuse_copies_of: str | None = None,
    allow_origins: Sequence[str] = (),
) -> None:
    """Run MONAI Label's server until it is stopped.

    Logs, sessions, uploads and downloaded series are in a private temporary folder, removed at the end, also if
    that is by SIGTERM.

    Args:
        model: what ``medfusion_monai.load`` takes.
        studies: folder, or root of a DICOMweb service.
        host: address to listen on.
        port: likewise.
        user: of DICOMweb; its password is in ``MEDFUSION_PACS_PASSWORD``, a token in ``MEDFUSION_PACS_TOKEN``.
        temperature: of ``calibrate``, for the probabilities of classes.
        refuse_copies_of: folder of an audit; generated images that are too near to a training image are not shown.
        allow_origins: web sites, as ``https://HOST``, whose pages may use the server; by default none but its own.

    Raises:
        ValueError: if MONAI Label is not installed, the model cannot be loaded or is a GAN, the studies cannot be
            reached, or the port is in use.
    """
    _require_monailabel()
    _check_port(host, port)
    _check_studies(studies, user)
    if temperature is not None:
        check_numbers(above=True, temperature=temperature)
    require_denoiser(model, opened_model(os.path.abspath(model)).info)
    with _exit_by_sigterm(), tempfile.TemporaryDirectory(prefix="medfusion_label_") as folder:
        _configure(Path(folder))
        files = Path(folder) / "files"
        shutil.copy(Path(__file__).with_name("main.py"), folder)  # beside it the server writes, e.g. its log
        settings = {
            "model": os.path.abspath(model),
            "host": host,
            "user": user,
            "temperature": temperature,
            "refuse_copies_of": None if refuse_copies_of is None else os.path.abspath(refuse_copies_of),
            "allow_origins": " ".join(allow_origins),
            "files": str(files),
        }
        conf = [part for name, value in settings.items() if value for part in ("--conf", name, str(value))]
        with private_temporary_files(files):
            _serve(["--app", folder, "--studies", studies, "--host", host, "--port", str(port), *conf])


@contextmanager
def _exit_by_sigterm() -> Iterator[None]:
    """End by an exception, so that folders are removed: the server repeats SIGTERM to the handler that was set."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _serve(arguments: list[str]) -> None:
    from monailabel.main import Main

    own = ["start_server", "--uvicorn_app", "medfusion_monai.apps.monailabel.label_http:app", *arguments]
    server = Main()
    server.action_start_server(server.args_parser().parse_args(own))


def _require_monailabel() -> None:
    if importlib.util.find_spec("monailabel") is None:
        raise ValueError(
            "MONAI Label is not installed: install it in an environment of its own, in a clone of this project by "
            "python3 -m venv label && label/bin/pip install -e '.[label]'"
        )
    if version("pydicom").partition(".")[0] != "2":
        raise ValueError(
            f"MONAI Label {RELEASE} does not work with pydicom {version('pydicom')}: pip install 'pydicom>=2.4.4,<3'"
        )


def _check_port(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(address)
    except OSError as error:
        raise ValueError(
            f"the server cannot listen on {host}:{port}: {error.strerror or error}. Choose another --port or --host, "
            "or stop the program that listens there"
        ) from error


def _check_studies(studies: str, user: str | None) -> None:
    if not studies.startswith(("http://", "https://")):
        if not os.path.isdir(studies):
            raise ValueError(f"--studies {studies} is not a folder: name the folder of the images, or a DICOMweb URL")
        return
    parts = urlsplit(studies)
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("--studies must be without user, password and query: name the --user")
    from medfusion_monai.export.pacs import answering, open_session

    with answering(studies, "a search for series"), open_session(studies, user) as session:
        session.headers["Accept"] = "application/dicom+json"
        answer = session.get(f"{studies.rstrip('/')}/series", params={"limit": 1})
        answer.raise_for_status()


def _configure(folder: Path) -> None:
    """Set what MONAI Label reads from the environment when it is imported.

    Folders are set whatever is there: files of patients are only in the one that is removed at the end.
    """
    os.environ["MONAI_LABEL_SESSION_PATH"] = str(folder / "sessions")
    os.environ["MONAI_LABEL_DICOMWEB_CACHE_PATH"] = str(folder / "series")
    os.environ.setdefault("MONAI_LABEL_TASKS_TRAIN", json.dumps(False))

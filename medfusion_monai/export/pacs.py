"""Sends DICOM files of samples to a PACS, by DICOMweb (STOW-RS) or by DICOM's own protocol (C-STORE)."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tqdm import tqdm

from medfusion_monai.data.reading.synthetic_marks import marked_synthetic
from medfusion_monai.sampling.manifest import RowList

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom import Dataset

SENT = "sent.csv"
"""List of what was stored where, in the folder of the files."""
COLUMNS = ("file", "to", "sop_instance_uid")
OWN_TITLE = "MEDFUSION"
PASSWORD, TOKEN = "MEDFUSION_PACS_PASSWORD", "MEDFUSION_PACS_TOKEN"
"""Environment variables of the password of ``user``, or of a bearer token."""
SECONDS = 30.0
"""Without an answer, after which a server counts as gone."""
Store = Callable[["Dataset"], None]


class PacsError(ValueError):
    """A server that cannot be reached, or refuses a file."""


def send(folder: str | Path, to: str, user: str | None = None) -> int:
    """Store the DICOM files of a folder in a PACS; those that ``sent.csv`` lists for it are not sent again.

    Args:
        folder: of samples, written with ``output_format: dicom``.
        to: ``http(s)://HOST/PATH``, the root of a DICOMweb service, or ``dicom://TITLE@HOST:PORT``.
        user: of DICOMweb, with the password in ``MEDFUSION_PACS_PASSWORD``; a token is in ``MEDFUSION_PACS_TOKEN``.

    Returns:
        Number of files that were sent.

    Raises:
        PacsError: for an address of another kind, a folder without DICOM files, files that are not marked as synthetic
            (nothing is sent then), and a server that is not there, refuses a file or vanishes; what it stored is
            listed, and the same call sends the rest.
    """
    from pydicom import dcmread

    connected = _connection(to, user)
    folder = Path(folder)
    paths = sorted(folder.glob("*.dcm"))
    if not paths:
        raise PacsError(f"{folder} has no DICOM files: sample with --output_format dicom")
    others = sorted({str(path) for path in paths} - set(marked_synthetic(paths)))
    if others:
        raise PacsError(
            f"{len(others)} of {len(paths)} files in {folder} are not marked as synthetic, e.g. {others[0]}: they may "
            "be of patients, and nothing was sent. Move them to another folder"
        )
    listed = RowList(folder, SENT)
    known = listed.read(listed.main)
    missing = [path for path in paths if known.get(path.name, {}).get("to") != to]
    stored = 0
    try:
        with connected as store:
            for path in tqdm(missing, f"send to {to}", unit=" images", disable=not missing):
                file = dcmread(path)
                store(file)
                listed.append([{"file": path.name, "to": to, "sop_instance_uid": file.SOPInstanceUID}], COLUMNS)
                stored += 1
    except PacsError as error:
        done = len(paths) - len(missing) + stored
        raise PacsError(
            f"{to} has {done} of {len(paths)} files, listed in {listed.main}, then: {error}. The same command sends "
            "the rest"
        ) from error
    return stored


def _connection(to: str, user: str | None) -> AbstractContextManager[Store]:
    parts = urlsplit(to)
    if parts.scheme in ("http", "https") and parts.hostname:
        return _dicomweb(to, user)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme == "dicom" and parts.hostname and parts.username and port:
        return _association(parts.username, parts.hostname, port)
    raise PacsError(
        f"--to must be the root of a DICOMweb service, as https://HOST/dicom-web, or dicom://TITLE@HOST:PORT, received "
        f"{to!r}"
    )


@contextmanager
def _dicomweb(url: str, user: str | None) -> Iterator[Store]:
    requests, web = _imported("requests"), _imported("dicomweb_client.api")
    session = requests.Session()
    password, token = os.environ.get(PASSWORD), os.environ.get(TOKEN)
    if user is not None and password is None:
        raise PacsError(f"user {user} needs a password: set {PASSWORD}")
    if user is not None:
        session.auth = (user, password)
    elif token:
        session.headers["Authorization"] = f"Bearer {token}"
    client = web.DICOMwebClient(url, session=session)
    client.set_http_retry_params(retry=False)
    session.request = _with_timeout(session.request)

    def store(file: Dataset) -> None:
        try:
            answer = client.store_instances([file])
        except requests.exceptions.HTTPError as error:
            code = error.response.status_code
            hint = f" (name a --user, with {PASSWORD}, or set {TOKEN})" if code in (401, 403) else ""
            raise PacsError(f"{file.filename} was refused: HTTP {code} {error.response.reason}{hint}") from error
        except requests.exceptions.RequestException as error:
            raise PacsError(f"no answer from {url}: {type(error).__name__}") from error
        failed = answer.get("FailedSOPSequence") or []
        if failed:
            raise PacsError(f"{file.filename} was refused: failure reason {failed[0].get('FailureReason')}")

    with session:
        yield store


def _with_timeout(request: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        return request(*args, **{"timeout": SECONDS, **kwargs})

    return timed


@contextmanager
def _association(title: str, host: str, port: int) -> Iterator[Store]:
    from pydicom.uid import ExplicitVRLittleEndian

    from medfusion_monai.sampling.dicom_format import KINDS

    entity = _imported("pynetdicom").AE(ae_title=OWN_TITLE)
    for kind in KINDS.values():
        entity.add_requested_context(kind.sop_class, ExplicitVRLittleEndian)
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = SECONDS
    association = entity.associate(host, port, ae_title=title)
    if not association.is_established:
        why = "it rejected the association" if association.is_rejected else "nothing answers there"
        raise PacsError(f"no association with {title} at {host}:{port}: {why}")

    def store(file: Dataset) -> None:
        try:
            status = association.send_c_store(file).get("Status")
        except (RuntimeError, ValueError) as error:  # the association is gone, or the class was not accepted
            raise PacsError(f"{file.filename} was not stored: {error}") from error
        if status is None:
            raise PacsError(f"no answer from {title} at {host}:{port}")
        if status != 0x0000 and status >> 12 != 0xB:  # Bxxx: stored, with a warning
            raise PacsError(f"{file.filename} was refused: status {status:#06x}")

    try:
        yield store
    finally:
        if association.is_established:
            association.release()


def _imported(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PacsError(f"{name.partition('.')[0]} is not installed: pip install 'medfusion-monai[pacs]'") from error

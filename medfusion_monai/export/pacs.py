"""Sends DICOM files of samples to a PACS, by DICOMweb (STOW-RS) or by DICOM's own protocol (C-STORE)."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from tqdm import tqdm

from medfusion_monai.data.reading.synthetic_marks import marked_synthetic
from medfusion_monai.runtime.csv_cells import original
from medfusion_monai.sampling.dicom_format import KINDS, dicom_is_whole
from medfusion_monai.sampling.dicom_origin import is_edited
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
LONGEST_TITLE = 16
"""Characters of an application entity's title."""
SECONDS = 30.0
"""Without an answer, after which a server counts as gone."""
Store = Callable[["Dataset"], None]


class PacsError(ValueError):
    """A server that cannot be reached, or refuses a file."""


def send(folder: str | Path, to: str, user: str | None = None, edited: bool = False) -> int:
    """Store the DICOM files of a folder in a PACS; those that ``sent.csv`` lists for it are not sent again.

    Args:
        folder: of samples or edited images, written with ``output_format: dicom``.
        to: ``http(s)://HOST/PATH``, the root of a DICOMweb service, or ``dicom://TITLE@HOST:PORT``.
        user: of DICOMweb, with the password in ``MEDFUSION_PACS_PASSWORD``; a token is in ``MEDFUSION_PACS_TOKEN``.
        edited: whether edited images, which still show their patients, may be sent.

    Returns:
        Number of files that were sent.

    Raises:
        PacsError: for an address of another kind, a folder without DICOM files, files that are damaged, not marked
            as synthetic, or edited without ``edited`` (nothing is sent then), and a server that is not there, refuses
            a file or vanishes; what it stored is listed, and the same call sends the rest.
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
    cut_off = [str(path) for path in paths if not dicom_is_whole(path)]
    if cut_off:
        raise PacsError(
            f"{len(cut_off)} of {len(paths)} files in {folder} are damaged, e.g. {cut_off[0]}, and nothing was sent: "
            "sample them again, by the same command"
        )
    identifiers = _identifiers(paths, edited)
    listed = RowList(folder, SENT)
    known, stored = _known(listed.main), 0
    missing = [path for path, identifier in identifiers.items() if (path.name, to, identifier) not in known]
    try:
        with connected as store:
            for path in tqdm(missing, "send", unit=" images", disable=not missing):
                store(dcmread(path))
                row = {"file": path.name, "to": to, "sop_instance_uid": identifiers[path]}
                listed.append([row], COLUMNS)
                stored += 1
    except PacsError as error:
        done = len(paths) - len(missing) + stored
        raise PacsError(
            f"{to} has {done} of {len(paths)} files, listed in {listed.main}, then: {error}. The same command sends "
            "the rest"
        ) from error
    return stored


def _identifiers(paths: Sequence[Path], edited: bool) -> dict[Path, str]:
    """Return the SOP Instance UID of each file; raise a PacsError for edited images that may not be sent."""
    from pydicom import dcmread

    found, shown = {}, []
    for path in paths:
        header = dcmread(path, stop_before_pixels=True)
        found[path] = str(header.SOPInstanceUID)
        if is_edited(header):
            shown.append(path)
    if shown and not edited:
        raise PacsError(
            f"{len(shown)} of {len(paths)} files are edited images, e.g. {shown[0]}: they still show their patients, "
            "and nothing was sent. Add --edited if this server may have them"
        )
    return found


def _known(path: Path) -> set[tuple[str, str, str]]:
    """Return file, address and identifier of each row of a list; a line that a kill cut off has none."""
    if not path.is_file():
        return set()
    with open(path, newline="", encoding="utf-8") as file:
        rows = [[original(row.get(name) or "") for name in COLUMNS] for row in csv.DictReader(file)]
    return {(name, to, identifier) for name, to, identifier in rows}


def _connection(to: str, user: str | None) -> AbstractContextManager[Store]:
    parts = urlsplit(to)
    is_web = parts.scheme in ("http", "https") and parts.hostname
    if parts.password is not None or parts.query or parts.fragment or (is_web and parts.username):
        raise PacsError(
            "--to must be without user, password and query, which sent.csv would list: name the --user, and set "
            f"{PASSWORD} or {TOKEN}"
        )
    if is_web:
        return _dicomweb(to, user)
    try:
        port = parts.port
    except ValueError:
        port = None
    title = unquote(parts.username or "")
    if parts.scheme == "dicom" and parts.hostname and 0 < len(title) <= LONGEST_TITLE and port:
        return _association(title, parts.hostname, port)
    raise PacsError(
        "--to must be the root of a DICOMweb service, as https://HOST/dicom-web, or dicom://TITLE@HOST:PORT with a "
        f"title of at most {LONGEST_TITLE} characters, received {to!r}"
    )


def _refuse_readable_password(parts: SplitResult) -> None:
    """Refuse to send a password or a token without encryption, except to this machine."""
    given = [name for name in (PASSWORD, TOKEN) if os.environ.get(name)]
    if given and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise PacsError(f"{given[0]} would be readable on the way to {parts.hostname}: use https://, or unset it")


def open_session(url: str, user: str | None) -> Any:
    """Return a session of requests for a DICOMweb service, with a time limit and without redirections.

    Args:
        url: root of the service.
        user: with the password in ``MEDFUSION_PACS_PASSWORD``; a token is in ``MEDFUSION_PACS_TOKEN``.

    Raises:
        PacsError: for a user without password, and for a password that others could read on its way.
    """
    _refuse_readable_password(urlsplit(url))
    session = _imported("requests").Session()
    password, token = os.environ.get(PASSWORD), os.environ.get(TOKEN)
    if user is not None and password is None:
        raise PacsError(f"user {user} needs a password: set {PASSWORD}")
    if user is not None:
        session.auth = (user, password)
    elif token:
        session.headers["Authorization"] = f"Bearer {token}"
    session.request, session.max_redirects = _with_timeout(session.request), 0
    return session


@contextmanager
def answering(url: str, request: str) -> Iterator[None]:
    """Turn errors of a DICOMweb service into ``PacsError``.

    Args:
        url: root of the service.
        request: what is asked for, which the service may refuse, for the error text.
    """
    exceptions = _imported("requests").exceptions
    try:
        yield
    except exceptions.HTTPError as error:
        code = error.response.status_code
        hint = f" (name a --user, with {PASSWORD}, or set {TOKEN})" if code in (401, 403) else ""
        raise PacsError(f"{request} was refused: HTTP {code} {error.response.reason}{hint}") from error
    except exceptions.RequestException as error:
        raise PacsError(f"no answer of a DICOMweb service from {url}: {type(error).__name__}") from error


@contextmanager
def _dicomweb(url: str, user: str | None) -> Iterator[Store]:
    session = open_session(url, user)
    client = _imported("dicomweb_client.api").DICOMwebClient(url, session=session)
    client.set_http_retry_params(retry=False)

    def store(file: Dataset) -> None:
        with answering(url, str(file.filename)):
            answer = client.store_instances([file])
        failed = answer.get("FailedSOPSequence") or []
        if failed:
            raise PacsError(f"{file.filename} was refused: failure reason {failed[0].get('FailureReason')}")
        stored = [item.get("ReferencedSOPInstanceUID") for item in answer.get("ReferencedSOPSequence") or []]
        if file.SOPInstanceUID not in stored:  # e.g. the page of a login, which also has status 200
            raise PacsError(f"{url} did not confirm that it stored {file.filename}: it is no DICOMweb service")

    with session:
        yield store


def _with_timeout(request: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        return request(*args, **{"timeout": SECONDS, **kwargs})

    return timed


@contextmanager
def _association(title: str, host: str, port: int) -> Iterator[Store]:
    from pydicom.uid import ExplicitVRLittleEndian

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
        raise PacsError(f"{name.partition('.')[0]} is not installed: pip install -e '.[pacs]' in a clone") from error

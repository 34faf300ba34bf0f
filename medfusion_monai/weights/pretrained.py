"""The pretrained weights files that measurements use: which they are, and where they are on this machine.

Only ``fetch`` accesses the network. A file is accepted only with the SHA-256 stated by its publisher.
"""

from __future__ import annotations

import http.client
import os
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256, renamed_when_whole

FOLDER_VARIABLE = "MEDFUSION_WEIGHTS"
DEFAULT_FOLDER = "~/.cache/medfusion/weights"
NETWORK_TIMEOUT = 60.0
"""Seconds without a response after which ``fetch`` gives up."""
BLOCK = 1 << 20
"""Bytes copied at a time."""


class PretrainedFile(NamedTuple):
    """A published weights file: its published name, SHA-256, size in MiB, address and purpose."""

    file: str
    sha256: str
    mebibytes: int
    url: str
    purpose: str


KNOWN = {
    "inception-v3": PretrainedFile(
        "weights-inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        91,
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "FID, KID, precision, recall",
    ),
    "vgg16": PretrainedFile(
        "vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        528,
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "LPIPS on VGG-16, also as a term of the training loss",
    ),
    "alexnet": PretrainedFile(
        "alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        233,
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "LPIPS on AlexNet",
    ),
    "dinov2": PretrainedFile(
        "dinov2_vitb14_pretrain.pth",
        "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
        331,
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
        "distance, precision, recall by features of DINOv2",
    ),
}


def weights_folder() -> Path:
    """Return the folder of the files: ``$MEDFUSION_WEIGHTS``, or one in the user's cache."""
    try:
        return Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER).expanduser()
    except RuntimeError as error:
        raise WeightsError(f"the user has no home folder ({error}): set {FOLDER_VARIABLE} to a folder") from error


def place(name: str) -> Path:
    """Return the path of a known file on this machine, whether it exists or not.

    Raises:
        WeightsError: if no known file has this name.
    """
    return weights_folder() / _known(name).file


def find(name: str) -> Path:
    """Return the path of a known file on this machine, after checking its SHA-256.

    Args:
        name: key of ``KNOWN``.

    Raises:
        WeightsError: if the name is unknown, or the file is missing or another one; the message states its checksum and
            how to get it.
    """
    path = place(name)
    if not path.is_file():
        raise WeightsError(f"the weights of {name} are not on this machine: {path} does not exist. {how_to_get(name)}")
    check_sha256(path, KNOWN[name].sha256, how_to_get(name))
    return path


def state_of(name: str) -> str:
    """Return ``good``, ``damaged`` or ``missing`` for a known file, by its checksum."""
    path = place(name)
    if not path.is_file():
        return "missing"
    return "good" if _sha256(path) == KNOWN[name].sha256 else "damaged"


def add(file: str | Path) -> tuple[str, Path]:
    """Copy a file downloaded elsewhere to its place; it is identified by its checksum, not by its name.

    Returns:
        Its name, a key of ``KNOWN``, and its place.

    Raises:
        WeightsError: if the file is missing, none of the known ones, damaged, or cannot be written.
    """
    file = Path(file)
    found = check_sha256(file)
    name = next((name for name, known in KNOWN.items() if known.sha256 == found), None)
    if name is None:
        raise WeightsError(_not_known(file, found))
    if state_of(name) != "good":
        with open(file, "rb") as source:
            _store(name, iter(lambda: source.read(BLOCK), b""))
    return name, place(name)


def fetch(name: str) -> Path:
    """Download a known file to its place unless it is there; the only function that accesses the network.

    Raises:
        WeightsError: if the name is unknown, the file cannot be fetched or written, or it is another one.
    """
    if state_of(name) != "good":
        _store(name, _download(name))
    return place(name)


def how_to_get(name: str) -> str:
    """Return instructions for getting a known file, with internet and without."""
    known = _known(name)
    return (
        f"With internet: medfusion weights fetch {name}. Without: download {known.url} ({known.mebibytes} MiB, "
        f"SHA-256 {known.sha256}) on another machine, copy it to this one and run: medfusion weights add {known.file}"
    )


def check_sha256(path: str | Path, expected: str | None = None, otherwise: str = "") -> str:
    """Return the SHA-256 of a file.

    Args:
        path: the file.
        expected: the required checksum; None accepts any.
        otherwise: what to do about a mismatch, for the error text.

    Raises:
        WeightsError: if the file is missing, unreadable or has another checksum.
    """
    if not Path(path).is_file():
        raise WeightsError(f"weights {path} do not exist: choose another file")
    found = _sha256(path)
    if expected is not None and found != expected.lower():
        raise WeightsError(f"weights {path} have SHA-256 {found}, expected {expected}. {otherwise}".rstrip())
    return found


def _known(name: str) -> PretrainedFile:
    if name not in KNOWN:
        raise WeightsError(f"weights {name!r} are not known: choose one of {', '.join(KNOWN)}")
    return KNOWN[name]


def _sha256(path: str | Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise WeightsError(f"weights {path} cannot be read: {error.strerror or error}") from error


def _not_known(file: Path, found: str) -> str:
    for name, known in KNOWN.items():
        if file.name == known.file:
            return f"{file} has SHA-256 {found}, but {name} has {known.sha256}: it is damaged. {how_to_get(name)}"
    expected = "; ".join(f"{name} has {known.sha256}" for name, known in KNOWN.items())
    return f"{file} has SHA-256 {found} and is not one of the known files: {expected}. Add one of these"


def _store(name: str, blocks: Iterable[bytes]) -> None:
    """Write a known file under a temporary name and rename it if its checksum is right."""
    path, expected = place(name), KNOWN[name].sha256
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with renamed_when_whole(path) as partial:
            with open(partial, "wb") as file:
                file.writelines(blocks)
            found = file_sha256(partial)
            if found != expected:
                raise WeightsError(
                    f"what was received for {path} has SHA-256 {found}, expected {expected}: it was cut off or "
                    f"replaced on the way, and is discarded. Try again, or: {how_to_get(name)}"
                )
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be written: {error.strerror or error}. Make room or set {FOLDER_VARIABLE} to another folder"
        ) from error


def _download(name: str) -> Iterator[bytes]:
    url = KNOWN[name].url
    try:
        with urllib.request.urlopen(url, timeout=NETWORK_TIMEOUT) as answer:
            received, most = 0, (KNOWN[name].mebibytes + 1) << 20
            while block := answer.read(BLOCK):
                received += len(block)
                if received > most:
                    raise WeightsError(
                        f"{url} sent more than the {KNOWN[name].mebibytes} MiB of this file: it is another one and is "
                        f"discarded. {how_to_get(name)}"
                    )
                yield block
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"{url} cannot be fetched: {error}. {how_to_get(name)}") from error

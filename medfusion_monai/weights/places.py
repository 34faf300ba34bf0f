"""Where weights are: in a file, in a folder of weights, in a bundle's folder, or in its zip."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

from medfusion_monai.runtime.errors import WeightsError

logger = logging.getLogger(__name__)

NAMES = ("model.pt", "model.safetensors")
"""Weights in a bundle's folder ``models``, by precedence: those of a training, then those that were copied there."""
STARTER = "starter"
"""Folder in ``models`` of the weights that the project ships; a training writes beside it, never into it."""


def find_weights(path: str | Path) -> Path:
    """Return the weights at a path: the file itself, or those of a folder of weights or of a bundle.

    Weights that a user trained or copied there precede the starter weights of the bundle; the log says if these are
    taken. If there are none, return the path where they would be.
    """
    path = Path(path)
    if not path.is_dir():
        return path if path.suffix or path.is_file() else path / NAMES[0]
    folders = (path, path / "models")
    places = [folder / inner / name for inner in ("", STARTER) for folder in folders for name in NAMES]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        return (path if path.name == "models" or not (path / "models").is_dir() else path / "models") / NAMES[0]
    if found.parent.name == STARTER and found.parent != path:
        logger.info("no weights of a training in %s: the starter weights %s are used", path, found)
    return found


def weights_at(path: str | Path) -> Path:
    """Return the weights at a path as ``find_weights`` does, for callers that need a file on disk.

    Raises:
        WeightsError: for a zip.
    """
    found = find_weights(path)
    if found.suffix == ".zip":
        raise WeightsError(f"{found} is a zip: unzip it, and give the weights in the folder models of the bundle")
    return found


def missing_weights(path: Path) -> str:
    """Return the error text for missing weights."""
    listed = path.parent.parent / "large_files.yml"
    if path.parent.name == "models" and listed.is_file() and path.name in listed.read_text(encoding="utf-8"):
        return (
            f"weights {path} have not been downloaded yet: {listed.name} lists their address. With internet, run "
            f"python -m monai.bundle download_large_files --bundle_path {path.parent.parent}"
        )
    return f"weights {path} do not exist: run training first, or choose another file"


def unpack_weights(archive: Path, folder: Path) -> Path:
    """Unpack the weights of a bundle's zip and return their path; no other file is written."""
    with zipfile.ZipFile(archive) as file:
        for entry in file.infolist():
            place = Path(entry.filename)
            inner = place.parts[-2:] if place.parent.name == "models" else place.parts[-1:]
            if not entry.is_dir() and (place.parent.name == "models" or place.name == "large_files.yml"):
                target = folder.joinpath(*inner)
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(file.read(entry))
    return find_weights(folder)

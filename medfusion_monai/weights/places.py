"""Where weights are: in a file, in a folder of weights, in a bundle's folder, or in its zip."""

from __future__ import annotations

import zipfile
from pathlib import Path

NAMES = ("model.pt", "model.safetensors")
"""Weights in a bundle's folder ``models``, by precedence: those of a training, then those shipped with the bundle."""


def find_weights(path: str | Path) -> Path:
    """Return the weights at a path: the file itself, or those of a folder of weights or of a bundle.

    If there are none, return the path where they would be.
    """
    path = Path(path)
    if not path.is_dir():
        return path if path.suffix or path.is_file() else path / NAMES[0]
    places = [folder / name for folder in (path, path / "models") for name in NAMES]
    found = [place for place in places if place.is_file()]
    inner = path if path.name == "models" or not (path / "models").is_dir() else path / "models"
    return found[0] if found else inner / "model.pt"


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

"""Files of pictures, with the bytes that ``run inference`` and ``run editing`` write, and as often as one asks.

formats_of(picture) -> list of names that the functions below take as ``output_format``
encode(picture, output_format="png") -> bytes;  name_of(picture, output_format) -> str
zip_of(pictures, output_format="png") -> bytes, with manifest.csv
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from medfusion_monai.sampling.image_formats import FORMATS, suffix_of
from medfusion_monai.sampling.manifest import write_rows
from medfusion_monai.sampling.plan import MANIFEST
from medfusion_monai.sampling.writer import note_of
from medfusion_monai.studio.picture import Picture

DATE = (1980, 1, 1, 0, 0, 0)
"""Of all files in a zip: the earliest that it can hold, so that the bytes repeat."""


def formats_of(picture: Picture) -> list[str]:
    """Return the formats of a picture, ``png`` first."""
    return [name for name, form in FORMATS.items() if len(picture.image) in form.channels]


def name_of(picture: Picture, output_format: str) -> str:
    """Return the name of a picture's file.

    Raises:
        ValueError: for an unknown format, or one that its channels do not allow.
    """
    return _row(picture, output_format)["file"]


def encode(picture: Picture, output_format: str = "png") -> bytes:
    """Return the file of a picture; it is marked as synthetic, or as edited, and notes how it was made.

    Raises:
        ValueError: as in ``name_of``.
    """
    row = _row(picture, output_format)
    return FORMATS[output_format].encode(picture.image.numpy(), _note(row))


def zip_of(pictures: Sequence[Picture], output_format: str = "png") -> bytes:
    """Return a zip of pictures, each once, with ``manifest.csv``.

    Raises:
        ValueError: for no pictures, or as in ``name_of``.
    """
    if not pictures:
        raise ValueError("there are no pictures to download: make some first")
    rows = [_row(picture, output_format) for picture in pictures]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    body, manifest, taken = io.BytesIO(), io.StringIO(), set[str]()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        for picture, row in zip(pictures, rows, strict=True):
            content = FORMATS[output_format].encode(picture.image.numpy(), _note(row))
            row["file"] = _free_name(row["file"], FORMATS[output_format].suffix, taken)
            archive.writestr(_entry(row["file"]), content)
        write_rows(manifest, rows, columns, header=True)
        archive.writestr(_entry(MANIFEST), manifest.getvalue().encode())
    return body.getvalue()


def _row(picture: Picture, output_format: str) -> dict[str, Any]:
    """Return the line of the manifest for a format."""
    suffix = suffix_of(output_format, len(picture.image))
    file = picture.row["file"].removesuffix(".png") + suffix
    return {**picture.row, "file": file, "output_format": output_format}


def _note(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file says, for an edited image with its number in the series, as ``EditWriter`` adds it."""
    return note_of({**row, "instance": row["index"] + 1} if "edit" in row else row)


def _free_name(file: str, suffix: str, taken: set[str]) -> str:
    """Return a name that is not taken, and take it: pictures of several jobs may have the same name."""
    names = [file, *(f"{file.removesuffix(suffix)}_{number}{suffix}" for number in range(2, len(taken) + 2))]
    free = next(name for name in names if name not in taken)
    taken.add(free)
    return free


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, DATE)
    entry.external_attr = 0o644 << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry

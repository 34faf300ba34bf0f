"""The output formats by name: how an image is encoded, and whether a file is complete."""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from PIL import Image, PngImagePlugin

from medfusion_monai.sampling.dicom_format import KINDS, Note, dicom_is_whole

MADE = "true: made by a generative model, shows no real patient"
EDITED = "true: edited by a generative model, may show a real patient"
PNG_END = b"IEND\xaeB`\x82"


class ImageFormat(NamedTuple):
    """An output format.

    Args:
        suffix: ending of the file names.
        encode: returns the content of the file, ``encode(image, note)``, for an image (C, H, W) in [0, 1] and a note,
            which is stored in the file and marks it as synthetic.
        is_whole: returns whether a path is a complete file; False if it is missing or cut off.
        channels: numbers of channels that it supports.
        title: in the card of a sample set; empty for its name.
    """

    suffix: str
    # Bytes and not a path, as files have temporary names at first and libraries such as NumPy would append a suffix.
    encode: Callable[[np.ndarray, Note], bytes]
    is_whole: Callable[[Path], bool]
    channels: tuple[int, ...] = (1, 3)
    title: str = ""


def png_bytes(image: np.ndarray, note: Note, bits: int = 8) -> bytes:
    """Encode an image (C, H, W) in [0, 1] as PNG, values rounded; one channel stays gray.

    Args:
        image: one or three channels.
        note: stored as text entry ``Comment``, besides ``Synthetic`` and ``Software``. With an entry ``edit``, the
            image is an edited one, which still shows its patient.
        bits: 8, or 16 for gray images.
    """
    file = io.BytesIO()
    png_pixels(image, bits).save(file, format="PNG", pnginfo=png_text(note))
    return file.getvalue()


def png_pixels(image: np.ndarray, bits: int = 8) -> Image.Image:
    """Return the pixels of ``png_bytes``: values rounded, one channel stays gray."""
    values = np.rint(image.clip(0.0, 1.0) * (2**bits - 1)).astype(np.uint16 if bits == 16 else np.uint8)
    return Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0))


def png_text(note: Note) -> PngImagePlugin.PngInfo:
    """Return the text entries of a PNG: a mark as generated or edited, the program, and a note."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Synthetic", EDITED if "edit" in note else MADE)
    text.add_text("Software", "medfusion_monai")
    text.add_text("Comment", json.dumps(dict(note)))
    return text


def png16_bytes(image: np.ndarray, note: Note) -> bytes:
    """Encode a gray image (1, H, W) in [0, 1] as PNG of 16 bits."""
    return png_bytes(image, note, bits=16)


def png_is_whole(path: Path) -> bool:
    """Return whether a file ends with the last chunk of a PNG."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(PNG_END), os.SEEK_END)
            return file.read() == PNG_END
    except OSError:
        return False


def nifti_bytes(image: np.ndarray, note: Note) -> bytes:
    """Encode an image (C, H, W) in [0, 1] as gzipped NIfTI, float32; its header marks it as synthetic.

    Axes are (W, H), which MONAI's ``LoadImage(ensure_channel_first=True)`` reads as (1, W, H), or (W, H, C) for RGB,
    which it reads as (C, W, H) if given ``channel_dim=-1``.
    """
    array = image.transpose(2, 1, 0).astype(np.float32)  # (C, H, W) -> (W, H, C)
    array = array[..., 0] if array.shape[-1] == 1 else array
    file = nib.Nifti1Image(array, np.diag([-1.0, -1.0, 1.0, 1.0]))
    how = b"edited" if "edit" in note else b"generated"
    file.header["descrip"] = b"SYNTHETIC, " + how + b" by medfusion_monai"
    file.header.extensions.append(nib.nifti1.Nifti1Extension("comment", json.dumps(dict(note)).encode()))
    return gzip.compress(file.to_bytes(), mtime=0)


def gzip_is_whole(path: Path) -> bool:
    """Return whether a file decompresses and matches its checksum."""
    try:
        return bool(gzip.decompress(path.read_bytes()))  # an empty file decompresses to nothing
    except (OSError, EOFError, zlib.error):
        return False


FORMATS = {
    "png": ImageFormat(".png", png_bytes, png_is_whole, title="PNG, 8 bits"),
    "png16": ImageFormat(".png", png16_bytes, png_is_whole, channels=(1,), title="PNG, 16 bits"),
    "nifti": ImageFormat(".nii.gz", nifti_bytes, gzip_is_whole, title="NIfTI, float32"),
    **{
        name: ImageFormat(".dcm", kind.encode, dicom_is_whole, kind.channels, kind.title)
        for name, kind in KINDS.items()
    },
}
"""By the names that ``output_format`` takes. Add your own here."""


def image_format(output_format: str) -> ImageFormat:
    """Return a format by name; raise a ValueError if it is unknown."""
    if output_format not in FORMATS:
        raise ValueError(f"output_format must be one of {', '.join(FORMATS)}, received {output_format!r}")
    return FORMATS[output_format]


def suffix_of(output_format: str, channels: int) -> str:
    """Return the file ending of a format; raise a ValueError if it is unknown or does not support these channels."""
    chosen = image_format(output_format)
    if channels not in chosen.channels:
        able = [name for name, other in FORMATS.items() if channels in other.channels]
        raise ValueError(
            f"output_format {output_format} does not support images of {channels} channels: choose "
            f"{' or '.join(able) or 'a network of another number of channels'}"
        )
    return chosen.suffix

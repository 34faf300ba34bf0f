"""Files of results, with the geometry of their study as ITK, and so a client, reads it."""

from __future__ import annotations

import gzip
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK
from PIL import PngImagePlugin
from torch import Tensor

from medfusion_monai.apps.monailabel.study_files import Study, in_file_order
from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.sampling.dicom_format import Note
from medfusion_monai.sampling.image_formats import EDITED, MADE, nifti_bytes, png_bytes, png_text

WITH_GEOMETRY = (".nrrd", ".nii", ".nii.gz", ".mha")
SUFFIXES = (*WITH_GEOMETRY, ".png")
"""Of the files of answers."""
TYPES: dict[str, Any] = {"uint8": np.uint8, "uint16": np.uint16, "float32": np.float32}
IHDR_END = 33
"""Of a PNG, in bytes: where its text entries may begin."""


def write_label_map(label_map: np.ndarray, study: Study, suffix: str) -> str:
    """Write an upright label map, uint8 (H, W), to a temporary file for a client and return its path."""
    return _write(in_file_order(label_map, study.path), study, suffix)


def write_image(image: Tensor, study: Study | None, suffix: str, dtype: str, note: Note) -> str:
    """Write an upright image (C, H, W) in [0, 1] to a temporary file for a client, marked, and return its path.

    Args:
        image: as large as the study.
        study: whose geometry the file gets; None for an image of its own.
        suffix: of the file.
        dtype: uint8 or uint16 over their whole range, or float32 in [0, 1].
        note: stored in the file. With an entry ``edit`` the image is an edited one, else a generated one.

    Raises:
        ValueError: for float32 in a PNG file.
    """
    kind = TYPES[dtype]
    values = image.numpy() if kind is np.float32 else np.rint(image.numpy() * np.iinfo(kind).max)
    pixels = values.astype(kind).transpose(1, 2, 0)  # (C, H, W) -> (H, W, C)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return _write(pixels if study is None else in_file_order(pixels, study.path), study, suffix, note)


def read_label(path: str) -> np.ndarray:
    """Return a client's label map with rows and columns as its file has them, (ny, nx).

    Raises:
        DataError: for a file that ITK cannot read, or of more than one slice.
    """
    try:
        values = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))
    except RuntimeError as error:
        raise DataError("the label cannot be read: send a label map as NRRD, NIfTI or PNG.") from error
    if values.ndim == 3 and values.shape[-1] in (3, 4) and path.endswith(".png"):
        values = values.max(-1)
    values = values.squeeze(tuple(axis for axis in range(values.ndim - 2) if values.shape[axis] == 1))
    if values.ndim != 2:
        raise DataError(f"the label has the shape {values.shape} instead of one slice: draw it on the study itself.")
    return values


def edited_bytes(image: Tensor, study: Study, note: Note) -> tuple[bytes, str]:
    """Encode an edited image (C, H, W) in [0, 1] as a study, marked as edited; return content and suffix.

    Studies that Pillow reads become PNG, others NIfTI with their geometry.

    Args:
        image: as large as the study.
        study: that was edited.
        note: stored in the file, with an entry ``edit``.
    """
    reader = _reader(study)
    if reader.GetDimension() < 3 and not study.path.endswith((".nii", ".nii.gz")):
        return png_bytes(image.numpy(), note), ".png"
    pixels = in_file_order(image.numpy().transpose(1, 2, 0), study.path).swapaxes(0, 1)  # (ny, nx, C) -> (nx, ny, C)
    file = nib.Nifti1Image(_volume(pixels), _affine(reader))
    return _marked_nifti(file, note), ".nii"


def _marked_nifti(file: nib.Nifti1Image, note: Note) -> bytes:
    """Return the content of a NIfTI file with the marks of those that are sampled."""
    content = gzip.decompress(nifti_bytes(np.zeros((1, 1, 1)), note))
    marks = nib.Nifti1Image.from_bytes(content).header
    file.header["descrip"] = marks["descrip"]
    file.header.extensions.extend(marks.extensions)
    return file.to_bytes()


def _marked_png(content: bytes, note: Note) -> bytes:
    file = io.BytesIO()
    for name, text, *_ in png_text(note).chunks:
        PngImagePlugin.putchunk(file, name, text)
    return content[:IHDR_END] + file.getvalue() + content[IHDR_END:]


def _mark(path: str, note: Note) -> None:
    """Mark a PNG or NIfTI file, of which ITK writes no texts."""
    file = Path(path)
    if path.endswith(".png"):
        file.write_bytes(_marked_png(file.read_bytes(), note))
    elif path.endswith(".nii.gz"):
        content = _marked_nifti(nib.Nifti1Image.from_bytes(gzip.decompress(file.read_bytes())), note)
        file.write_bytes(gzip.compress(content, mtime=0))
    elif path.endswith(".nii"):
        file.write_bytes(_marked_nifti(nib.Nifti1Image.from_bytes(file.read_bytes()), note))


def _volume(pixels: np.ndarray) -> np.ndarray:
    """Return (nx, ny, 1): float32 of gray pixels, colours in 8 bits as one value each."""
    if pixels.shape[-1] == 1:
        return pixels.astype(np.float32)
    colours = np.rint(pixels * 255).astype(np.uint8)
    return np.ascontiguousarray(colours).view([("R", "u1"), ("G", "u1"), ("B", "u1")])


def _reader(study: Study) -> SimpleITK.ImageFileReader:
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(study.path)
    reader.ReadImageInformation()
    return reader


def _direction(reader: SimpleITK.ImageFileReader, axes: int) -> np.ndarray:
    count = reader.GetDimension()
    return np.array(reader.GetDirection()).reshape(count, count)[:axes, :axes]


def _affine(reader: SimpleITK.ImageFileReader) -> np.ndarray:
    """Return the affine (4, 4) of NIfTI, whose first two axes point against those of ITK."""
    axes = min(3, reader.GetDimension())
    affine = np.eye(4)
    affine[:axes, :axes] = _direction(reader, axes) * np.array(reader.GetSpacing()[:axes])
    affine[:axes, 3] = reader.GetOrigin()[:axes]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _write(pixels: np.ndarray, study: Study | None, suffix: str, note: Note | None = None) -> str:
    with_geometry = study is not None and suffix in WITH_GEOMETRY
    colours = pixels.ndim == 3
    if study is not None and with_geometry and _reader(study).GetDimension() > 2:
        pixels = pixels[None]  # one slice
    image = SimpleITK.GetImageFromArray(pixels, isVector=colours)
    if study is not None and with_geometry:
        reader, axes = _reader(study), image.GetDimension()
        image.SetSpacing(reader.GetSpacing()[:axes])
        image.SetOrigin(reader.GetOrigin()[:axes])
        image.SetDirection(_direction(reader, axes).ravel().tolist())
    if note is not None:
        image.SetMetaData("Synthetic", EDITED if "edit" in note else MADE)
        image.SetMetaData("Note", json.dumps(dict(note)))
    handle, path = tempfile.mkstemp(suffix, "medfusion_")
    os.close(handle)
    try:
        SimpleITK.WriteImage(image, path, useCompression=True)
    except RuntimeError as error:
        os.unlink(path)
        raise ValueError(f"{pixels.dtype} cannot be written as {suffix}: set result_extension to .nrrd") from error
    if note is not None:
        _mark(path, note)
    return path

"""Finds out whether an image file says that it is synthetic, as those of this project and of newer DICOM do."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from pathlib import Path

from medfusion_monai.data.reading.dicom import looks_like_dicom
from medfusion_monai.data.reading.nifti import GZIP, looks_like_nifti

SYNTHETIC_DATA = 0x0008001C
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_ENTRY, NIFTI_START = "Synthetic", b"SYNTHETIC"
"""Text entry of a PNG, and beginning of the description in a NIfTI header, that mark a synthetic image."""
NIFTI_DESCRIPTION = 148
"""Place of ``descrip`` in the header of NIfTI-1, in bytes."""


def marked_synthetic(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return those of the files that say that they are synthetic; unreadable ones say nothing.

    DICOM says so by Synthetic Data (0008,001C), PNG and NIfTI files of this project by their metadata.
    """
    return [os.fspath(path) for path in paths if _is_marked(Path(path))]


def _is_marked(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(352)
        if looks_like_dicom(head):
            return _dicom_is_marked(path)
        if head.startswith(PNG_START):
            from PIL import Image

            with Image.open(path) as image:  # which reads the texts in front of the pixels
                return PNG_ENTRY in image.info
        return looks_like_nifti(head) and _nifti_is_marked(path, head)
    except Exception:  # decoding the image says what is wrong with it
        return False


def _dicom_is_marked(path: Path) -> bool:
    from pydicom import dcmread

    header = dcmread(path, stop_before_pixels=True, specific_tags=[SYNTHETIC_DATA], force=True)
    return SYNTHETIC_DATA in header and str(header[SYNTHETIC_DATA].value).upper() == "YES"


def _nifti_is_marked(path: Path, head: bytes) -> bool:
    with gzip.open(path) if head[:2] == GZIP else open(path, "rb") as file:
        return file.read(NIFTI_DESCRIPTION + 80)[NIFTI_DESCRIPTION:].startswith(NIFTI_START)

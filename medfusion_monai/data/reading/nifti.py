"""Reads NIfTI files of one 2D image each."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import nibabel as nib
import numpy as np

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.size_limit import refuse_large
from medfusion_monai.data.reading.value_range import ValueRange, to_unit_range

GZIP = b"\x1f\x8b"
HEADER_BYTES = 540  # of NIfTI-2, the longer one
MOST_EXTENSIONS = 2**26  # bytes between header and image


def looks_like_nifti(head: bytes) -> bool:
    """Return whether a file's first 352 bytes are those of a NIfTI file (version 1 or 2) or a gzip file."""
    return head[:2] == GZIP or head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def read_nifti(path: Path, value_range: ValueRange | None = None) -> np.ndarray:
    """Read a 2D image of a NIfTI file, compressed by gzip or not.

    The shape is (nx, ny), (nx, ny, 1), or for RGB (nx, ny, 3), (nx, ny, 1, 3) or one of NIfTI's RGB types. The image
    is oriented by the header's affine in the radiological convention: the patient's left on the right, head or front
    up. Without an affine, or with the identity (a common placeholder), x runs to the right and y down.

    The header's display range (``cal_min``, ``cal_max``), if set, becomes [0, 1]. Otherwise 8 and 16 unsigned bits
    without scaling are divided by 255 and 65535, floats in [0, 1] are unchanged, and for all other values the lowest
    of the image becomes 0 and the highest 1.

    Args:
        path: the file.
        value_range: values that become 0 and 1, instead of the above.

    Returns:
        float32 of shape (C, H, W) in [0, 1], one or three channels.

    Raises:
        DataError: for a volume, one file of a pair, values that are not finite, a damaged file, and other gzip files.
    """
    try:
        with open(path, "rb") as file:
            is_packed = file.read(2) == GZIP
        with gzip.open(path) if is_packed else open(path, "rb") as file:
            content = file.read(HEADER_BYTES)
            _refuse_other_content(path, content)
            kind = nib.Nifti2Image if content[4:7] == b"n+2" else nib.Nifti1Image
            header = kind.header_class(content[: kind.header_class.sizeof_hdr])
            _refuse_volume(path, header.get_data_shape())  # before decompressing a whole volume
            image = kind.from_bytes(content + file.read(_bytes_of(path, header) - len(content)))
        return _to_pixels(path, image, value_range)
    except DataError:
        raise
    except Exception as error:  # nibabel and gzip raise anything from EOFError to zlib.error
        raise DataError(
            f"{path}: is a NIfTI file that cannot be read, truncated or damaged: {error}. Fetch the file again."
        ) from error


def places_in_file(path: Path) -> np.ndarray:
    """Return the place in a NIfTI file of each pixel of its upright image, (H, W): ``x + nx * y``.

    Args:
        path: a file that ``read_nifti`` reads.
    """
    image = nib.load(path)
    nx, ny = image.shape[:2]  # type: ignore[attr-defined]
    places = np.arange(nx * ny).reshape(ny, nx)
    return _upright(places.T[..., None], image)[0]  # type: ignore[arg-type]


def _refuse_other_content(path: Path, content: bytes) -> None:
    if content[344:347] == b"ni1" or content[4:7] == b"ni2":
        raise DataError(f"{path}: is one file of a NIfTI pair (.hdr and .img). Write it as one file, .nii or .nii.gz.")
    if content[344:347] != b"n+1" and content[4:7] != b"n+2":
        raise DataError(f"{path}: is a gzip file without a NIfTI image. Decompress it, or write it as PNG.")


def _refuse_volume(path: Path, shape: tuple[int, ...]) -> None:
    if len(shape) < 2 or [size for size in shape[2:] if size != 1] not in ([], [3]):
        raise DataError(f"{path}: is a NIfTI volume of shape {shape}, not one 2D image. Write one slice per file.")


def _bytes_of(path: Path, header: nib.Nifti1Header) -> int:
    """Return the length of header and image; what follows is not read."""
    shape, start = header.get_data_shape(), int(header["vox_offset"])
    refuse_large(path, shape[1], shape[0])
    if start > MOST_EXTENSIONS:
        raise DataError(f"{path}: is a NIfTI file whose image begins after {start} bytes. Correct its vox_offset.")
    return max(HEADER_BYTES, start + math.prod(shape) * header.get_data_dtype().itemsize)


def _to_pixels(path: Path, image: nib.Nifti1Image, value_range: ValueRange | None) -> np.ndarray:
    values = np.asanyarray(image.dataobj)
    if values.dtype.names:
        values = np.stack([values[name] for name in values.dtype.names], -1)
        if values.shape[-1] == 4:  # alpha: on black, as for other files
            values = values[..., :3] * (values[..., 3:] / np.float32(255)) / np.float32(255)
    if np.iscomplexobj(values) or not np.isfinite(values).all():
        raise DataError(
            f"{path}: is a NIfTI file with values that are complex or not finite. Write finite real values."
        )
    planes = values.reshape(*values.shape[:2], -1)  # (nx, ny, 1, C) -> (nx, ny, C)
    is_plain = getattr(image.dataobj, "slope", 1) == 1 and getattr(image.dataobj, "inter", 0) == 0
    value_range = value_range or _range_of(planes, image.header, is_plain)
    return _upright(to_unit_range(planes, value_range).astype(np.float32), image)


def _range_of(values: np.ndarray, header: nib.Nifti1Header, is_plain: bool) -> ValueRange:
    low, high = float(header["cal_min"]), float(header["cal_max"])
    if high > low:
        return low, high
    lowest, highest = float(values.min()), float(values.max())
    if is_plain and values.dtype in (np.uint8, np.uint16):
        return 0, np.iinfo(values.dtype).max
    if values.dtype.kind == "f" and lowest >= 0 and highest <= 1:
        return 0, 1
    return lowest, (highest if highest > lowest else lowest + 1)


def _upright(planes: np.ndarray, image: nib.Nifti1Image) -> np.ndarray:
    """Orient (nx, ny, C) as (C, H, W) by the directions of its axes."""
    codes: tuple[str | None, ...] = (None, None)
    has_affine = image.header["sform_code"] > 0 or image.header["qform_code"] > 0
    if has_affine and not np.array_equal(image.affine, np.eye(4)):
        codes = nib.aff2axcodes(image.affine)[:2]
    # Columns run to the patient's left or back, rows to the back or feet: against nibabel's positive axes.
    for axis, code in enumerate(codes):
        if code in ("R", "A", "S"):
            planes = np.flip(planes, axis)
    ranks = ["LR AP SI".find(code or " ") for code in codes]
    x_is_columns = None in codes or ranks[0] <= ranks[1]
    return np.ascontiguousarray(planes.transpose((2, 1, 0) if x_is_columns else (2, 0, 1)))

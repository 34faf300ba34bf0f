"""Reads the formats of Pillow: PNG, JPEG, WebP, TIFF and others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.jpeg_files import missing_part
from medfusion_monai.data.reading.size_limit import refuse_large
from medfusion_monai.data.reading.value_range import ValueRange, to_unit_range

MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339
MIN_IS_WHITE, UNSIGNED, SIGNED = 0, 1, 2


def read_with_pillow(path: Path, value_range: ValueRange | None = None) -> np.ndarray:
    """Return (C, H, W) in [0, 1] with the file's own 1 or 3 channels.

    Raises:
        DataError: for a file that is not an image, damaged, or of several frames.
    """
    # Some programs enable this for the whole process; truncated images must raise.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(path) as image:
            refuse_large(path, image.height, image.width)
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # MPO: a camera's JPEG, followed by its preview
                raise DataError(f"{path}: contains {frames} frames. Write one image per file.")
            if value_range is not None:
                _refuse_deep_colour(path, image)
            image.load()
            missing = missing_part(path.read_bytes(), image) if image.format in ("JPEG", "MPO") else None
            if missing:
                raise DataError(f"{path}: is an incomplete JPEG: {missing}. Fetch the file again.")
            tags = dict(getattr(image, "tag_v2", {}))
            return _to_array(ImageOps.exif_transpose(image), path, tags, value_range)
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        with open(path, "rb") as file:
            head = file.read(8)
        raise DataError(
            f"{path}: is not an image ({path.stat().st_size} bytes, starting with {head!r}). "
            "Remove it, or convert it to PNG or JPEG."
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: has too many pixels. Reduce its size, or cut it into tiles. ({error})") from error
    except Exception as error:  # Pillow's decoders raise anything from SyntaxError to zlib.error
        raise DataError(
            f"{path}: cannot be decoded, truncated or damaged: {error} ({path.stat().st_size} bytes). "
            "Fetch the file again."
        ) from error


def _refuse_deep_colour(path: Path, image: ImageFile.ImageFile) -> None:
    """Raise for colour of 16 bits, of which Pillow keeps the higher 8: a stated range would leave few levels."""
    is_deep = any(";16" in str(tile.args) for tile in image.tile)  # the layout of the file's pixels, as "RGB;16B"
    if is_deep and image.mode not in MODES_16_BIT:
        raise DataError(
            f"{path}: has 16-bit colour, which is read as 8 bits and cannot be scaled by --range. Scale it to full "
            "range with another program."
        )


def white_of_pillow(path: Path) -> int:
    """Return the value of white by the type of a file."""
    with Image.open(path) as image:
        return _white(image, dict(getattr(image, "tag_v2", {})))


def _white(image: Image.Image, tiff_tags: Mapping[int, Any]) -> int:
    # Pillow ignores this tag: film digitizers write 12 bits.
    return 2 ** min(16, *tiff_tags.get(TIFF_BITS, (16,))) - 1 if image.mode in MODES_16_BIT else 255


def _to_array(
    image: Image.Image, path: Path, tiff_tags: Mapping[int, Any], value_range: ValueRange | None
) -> np.ndarray:
    values = _numbers(image, tiff_tags)
    if values is not None:
        return _numbers_to_gray(values, path, _white(image, tiff_tags), tiff_tags, value_range)[None]
    # Transparency is a separate channel or, in PNG, one colour declared transparent.
    has_alpha = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    gray = image.mode in ("1", "L", "LA", "La")
    image = image.convert(("LA" if has_alpha else "L") if gray else ("RGBA" if has_alpha else "RGB"))
    planes = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1).astype(np.float32)
    if value_range is not None:  # alpha stays as it is
        planes[: 1 if gray else 3] = 255 * to_unit_range(planes[: 1 if gray else 3], value_range)
    planes /= 255
    return planes[:-1] * planes[-1:] if has_alpha else planes


def _numbers(image: Image.Image, tiff_tags: Mapping[int, Any]) -> np.ndarray | None:
    """Return the stored numbers of gray that is not 8 unsigned bits, or None."""
    sample_format = tiff_tags.get(TIFF_SAMPLE_FORMAT, (UNSIGNED,))[0]
    if image.mode == "L" and sample_format == SIGNED:  # Pillow reads them as unsigned
        return np.asarray(image).view(np.int8).astype(np.int64)
    if image.mode == "F":
        return np.asarray(image)
    if image.mode not in MODES_16_BIT:
        return None
    values = np.asarray(image).astype(np.int64)
    is_unsigned_32 = sample_format == UNSIGNED and tiff_tags.get(TIFF_BITS) == (32,)  # read as signed by Pillow
    return values & 0xFFFFFFFF if is_unsigned_32 else values


def _numbers_to_gray(
    values: np.ndarray, path: Path, white: int, tiff_tags: Mapping[int, Any], value_range: ValueRange | None
) -> np.ndarray:
    if value_range is None:
        if values.dtype.kind == "f":
            raise DataError(
                f"{path}: has floating-point values of unknown range. State it with --range LOW HIGH, or write the "
                "image as 16-bit PNG."
            )
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"{path}: has values from {values.min()} to {values.max()}. State their range with --range LOW HIGH, "
                "or write gray as 8 or 16 unsigned bits."
            )
        value_range = (0, white)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: has values that are not finite. Write finite values.")
    pixels = to_unit_range(values, value_range).astype(np.float32)
    return 1 - pixels if tiff_tags.get(TIFF_PHOTOMETRIC) == MIN_IS_WHITE else pixels

"""Reads image files as hospitals have them, strictly: what cannot be read in full is an error with a reason."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps
from tqdm import tqdm

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.dicom import check_modalities, looks_like_dicom, read_dicom
from medfusion_monai.data.reading.nifti import looks_like_nifti, read_nifti

GRAY_TOLERANCE = 2  # of 255; what JPEG's colour conversion makes of equal channels
MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
TIFF_BITS, TIFF_PHOTOMETRIC, MIN_IS_WHITE = 258, 262, 0
BAR_FROM = 1000
T = TypeVar("T")


def read_image(
    path: str | os.PathLike[str], channels: int | None = None, modalities: Sequence[str] | None = None
) -> np.ndarray:
    """Read an image file, whatever its suffix says.

    The content decides the format. Orientation tags are applied. Alpha is dropped when opaque and otherwise composited
    on black. An RGB file whose channels are equal counts as gray. CMYK becomes RGB; colour of 16 bits is read at 8.
    DICOM and NIfTI: see ``read_dicom``, ``read_nifti``.

    Args:
        path: the file: DICOM, NIfTI, PNG, JPEG, WebP, TIFF or what else Pillow reads; 8 bits, or up to 16 bits gray.
        channels: 1 or 3 channels that the caller wants; None takes those of the file.
        modalities: values of DICOM's Modality that are accepted; None takes all projections and photographs.

    Returns:
        float32 of shape (C, H, W) in [0, 1].

    Raises:
        DataError: the file is missing, truncated, no single image, of another Modality, or has other channels.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels is {channels!r}: use 1 (gray), 3 (RGB) or None (as in the file).")
    check_modalities(modalities)
    pixels = _reader_for(Path(path), modalities)(Path(path))
    return _with_channels(pixels, channels, path)


def inspect_images(
    paths: Sequence[str | os.PathLike[str]], channels: int | None = None, modalities: Sequence[str] | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Decode all images.

    Args:
        paths: the files.
        channels: as for :func:`read_image`.
        modalities: as for :func:`read_image`.

    Returns:
        ``{path: digest}`` of the images that can be read: equal for equal pixels, whatever the format, the bit depth
        that holds them, or a gray image stored as RGB. And ``{path: reason}`` of the others. Both in the given order.
    """

    def inspect(path: str | os.PathLike[str]) -> tuple[str | None, str | None]:
        try:
            return pixel_digest(read_image(path, channels, modalities)), None
        except DataError as error:
            return None, str(error)

    results = decode_all(inspect, paths, "check images")
    pairs = [(os.fspath(path), result) for path, result in zip(paths, results, strict=True)]
    digests = {path: digest for path, (digest, _) in pairs if digest is not None}
    return digests, {path: reason for path, (_, reason) in pairs if reason is not None}


def decode_all(work: Callable[[Any], T], images: Sequence[Any], title: str) -> list[T]:
    """Return what work on each image gives. One thread per core decodes, eight at most; many images have a bar."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(tqdm(pool.map(work, images), title, len(images), disable=len(images) <= BAR_FROM))


def check_images(paths: Sequence[str | os.PathLike[str]], channels: int | None = None) -> None:
    """Decode all images and raise one error that counts and lists the problems.

    Args:
        paths: the files.
        channels: as for :func:`read_image`.

    Raises:
        DataError: at least one image cannot be read; the first ten are listed.
    """
    _, problems = inspect_images(paths, channels)
    if problems:
        raise DataError(
            list_problems(f"{len(problems)} of {len(paths)} images cannot be used", list(problems.values()))
            + "\nReplace or remove these files."
        )


def list_problems(title: str, problems: Sequence[str], limit: int = 10) -> str:
    """Return a title and the first problems, one a line, saying how many more there are."""
    lines = [f"{title}:", *(f"  {problem}" for problem in problems[:limit])]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(lines)


def pixel_digest(pixels: np.ndarray) -> str:
    """Give a checksum of an image (C, H, W) in [0, 1]: equal for equal pixels, whatever the file's format."""
    if len(pixels) == 3 and (pixels == pixels[:1]).all():
        pixels = pixels[:1]
    values = np.rint(pixels * 65535).astype("<u2")  # 8 bits and their copy in 16 bits are equal here
    digest = hashlib.blake2b(repr(values.shape).encode(), digest_size=16)
    digest.update(values.tobytes())
    return digest.hexdigest()


def _reader_for(path: Path, modalities: Sequence[str] | None) -> Callable[[Path], np.ndarray]:
    """Choose the reader by the file's first bytes; formats beside Pillow's are added here."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if path.is_dir() else "a pipe or device"
        raise DataError(f"{path}: is {kind}, not an image file. Give the path of a file.")
    try:
        with open(path, "rb") as file:
            head = file.read(352)
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist. Correct the path or bring the file back.") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened: {error.strerror or error}. Check its path and permissions."
        ) from error
    if not head:
        raise DataError(f"{path}: is empty (0 bytes). Fetch the file again.")
    if looks_like_dicom(head):
        return lambda path: read_dicom(path, modalities)
    return read_nifti if looks_like_nifti(head) else _read_with_pillow


def _read_with_pillow(path: Path) -> np.ndarray:
    """Return (C, H, W) in [0, 1] with the file's own 1 or 3 channels."""
    # Some programs switch this on for the whole process; half an image must not pass as a whole one.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # MPO: a camera's JPEG with its preview behind
                raise DataError(f"{path}: holds {frames} frames. Write one image a file.")
            image.load()
            return _to_array(ImageOps.exif_transpose(image), path, dict(getattr(image, "tag_v2", {})))
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        with open(path, "rb") as file:
            head = file.read(8)
        raise DataError(
            f"{path}: is not an image: {path.stat().st_size} bytes that begin with {head!r}. "
            "Remove it or convert it to PNG or JPEG."
        ) from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise DataError(f"{path}: has more than {limit} million pixels. Write it smaller.") from error
    except Exception as error:  # Pillow's decoders raise anything from SyntaxError to zlib.error
        raise DataError(
            f"{path}: cannot be decoded, truncated or damaged: {error} ({path.stat().st_size} bytes). "
            "Fetch the file again."
        ) from error


def _to_array(image: Image.Image, path: Path, tiff_tags: Mapping[int, Any]) -> np.ndarray:
    if image.mode in MODES_16_BIT:
        return _to_gray_16_bit(np.asarray(image).astype(np.int64), path, tiff_tags)[None]
    if image.mode == "F":
        raise DataError(f"{path}: holds floating-point values, whose range is unknown. Write it as 16-bit PNG.")
    # Transparency is an own channel or, in PNG, one colour that counts as transparent.
    has_alpha = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    gray = image.mode in ("1", "L", "LA", "La")
    image = image.convert(("LA" if has_alpha else "L") if gray else ("RGBA" if has_alpha else "RGB"))
    planes = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1).astype(np.float32) / 255
    return planes[:-1] * planes[-1:] if has_alpha else planes


def _to_gray_16_bit(values: np.ndarray, path: Path, tiff_tags: Mapping[int, Any]) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"{path}: has values from {values.min()} to {values.max()}. Write gray as 8 or 16 bits without sign."
        )
    # Pillow leaves these two to its callers: film digitizers write 12 bits, and white as zero.
    bits = min(16, *tiff_tags.get(TIFF_BITS, (16,)))
    pixels = (values / (2**bits - 1)).astype(np.float32)
    return 1 - pixels if tiff_tags.get(TIFF_PHOTOMETRIC) == MIN_IS_WHITE else pixels


def _with_channels(pixels: np.ndarray, channels: int | None, path: str | os.PathLike[str]) -> np.ndarray:
    if channels is None or len(pixels) == channels:
        return np.ascontiguousarray(pixels)
    if channels == 3:
        raise DataError(
            f"{path}: has 1 channel, the bundle wants 3; choose the bundle for gray images or give colour images."
        )
    difference = float(np.max(pixels.max(0) - pixels.min(0))) * 255
    if difference > GRAY_TOLERANCE + 1e-3:
        raise DataError(
            f"{path}: is coloured (its channels differ by up to {difference:.0f} of 255), the bundle wants 1 channel; "
            "convert it to gray or choose the bundle for colour images."
        )
    return pixels.mean(0, keepdims=True, dtype=np.float64).astype(np.float32)

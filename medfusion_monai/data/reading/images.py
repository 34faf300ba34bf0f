"""Reads image files of hospitals strictly: a file that cannot be read completely is an error with a reason."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.dicom import check_modalities, looks_like_dicom, read_dicom
from medfusion_monai.data.reading.nifti import looks_like_nifti, read_nifti
from medfusion_monai.data.reading.pillow_files import read_with_pillow, white_of_pillow
from medfusion_monai.data.reading.synthetic_marks import PNG_ENTRY
from medfusion_monai.data.reading.value_range import ValueRange, check_range

if TYPE_CHECKING:
    from medfusion_monai.data.reading.brightness import ImageSurvey

GRAY_TOLERANCE = 2  # of 255; difference between equal channels after JPEG's colour conversion
BAR_FROM = 1000
WAITING = 2000
T = TypeVar("T")


def read_image(
    path: str | os.PathLike[str],
    channels: int | None = None,
    modalities: Sequence[str] | None = None,
    value_range: ValueRange | None = None,
) -> np.ndarray:
    """Read an image file; its content, not its suffix, determines the format.

    Orientation tags are applied. Alpha is dropped if opaque, and otherwise composited on black. An RGB file with equal
    channels counts as gray. CMYK becomes RGB; 16-bit colour is read as 8 bits. DICOM and NIfTI: see ``read_dicom``,
    ``read_nifti``.

    Args:
        path: DICOM, NIfTI, PNG, JPEG, WebP, TIFF or another format of Pillow; 8 bits, or up to 16 bits gray.
        channels: expected number of channels, 1 or 3; None takes those of the file.
        modalities: accepted values of DICOM's Modality; None accepts all projections and photographs.
        value_range: values that become 0 and 1, instead of the range that the file's type or header states; of DICOM
            after rescaling, of 8-bit files from 0 to 255.

    Returns:
        float32 of shape (C, H, W) in [0, 1].

    Raises:
        DataError: for a file that is missing, truncated, not a single image, of another Modality, or has other
            channels.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels is {channels!r}: use 1 (gray), 3 (RGB) or None (as in the file).")
    check_modalities(modalities)
    check_range(value_range)
    reader = _reader_for(Path(path))
    options = {"modalities": modalities} if reader is read_dicom else {}
    pixels = reader(Path(path), value_range=value_range, **options)
    return _with_channels(pixels, channels, path)


def inspect_images(
    paths: Sequence[str | os.PathLike[str]],
    channels: int | None = None,
    modalities: Sequence[str] | None = None,
    survey: ImageSurvey | None = None,
) -> tuple[dict[str, str], dict[str, str]]:
    """Decode all images.

    Args:
        paths: the files.
        channels: as for :func:`read_image`.
        modalities: as for :func:`read_image`.
        survey: collects the brightness, and refuses images without content. With its ``value_range`` the digests are
            those of the files that :func:`write_scaled` writes.

    Returns:
        ``{path: digest}`` of the readable images, equal for equal pixels independently of format, bit depth, and
        storage of gray as RGB; and ``{path: reason}`` of the others. Both are in the given order.
    """

    def inspect(path: str | os.PathLike[str]) -> tuple[str | None, str | None]:
        try:
            if survey is None:
                return pixel_digest(read_image(path, channels, modalities)), None
            pixels = read_image(path, channels, modalities, survey.value_range)
            survey.add(path, pixels)
            written = pixels if survey.value_range is None else _scaled(pixels)
            return pixel_digest(written), None
        except DataError as error:
            return None, str(error)

    results = decode_all(inspect, paths, "check images")
    pairs = [(os.fspath(path), result) for path, result in zip(paths, results, strict=True)]
    digests = {path: digest for path, (digest, _) in pairs if digest is not None}
    return digests, {path: reason for path, (_, reason) in pairs if reason is not None}


def decode_all(work: Callable[[Any], T], images: Sequence[Any], title: str) -> list[T]:
    """Call ``work`` for each image, in one thread per core and at most eight, with a progress bar for many images."""
    starts = range(0, len(images), WAITING)  # a call that waits for its thread takes a kilobyte
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = (result for start in starts for result in pool.map(work, images[start : start + WAITING]))
        return list(tqdm(found, title, len(images), disable=len(images) <= BAR_FROM))


def check_images(
    paths: Sequence[str | os.PathLike[str]], channels: int | None = None, survey: ImageSurvey | None = None
) -> dict[str, str]:
    """Decode all images and raise one error that counts and lists the problems.

    Args:
        paths: the files.
        channels: as for :func:`read_image`.
        survey: as for :func:`inspect_images`.

    Returns:
        ``{path: digest}`` as ``inspect_images``.

    Raises:
        DataError: if at least one image cannot be read; the first ten are listed.
    """
    digests, problems = inspect_images(paths, channels, survey=survey)
    if problems:
        raise DataError(
            list_problems(f"{len(problems)} of {len(paths)} images cannot be used", list(problems.values()))
            + "\nReplace or remove these files."
        )
    return digests


def list_problems(title: str, problems: Sequence[str], limit: int = 10) -> str:
    """Return a title, the first problems, one per line, and the number of further ones."""
    lines = [f"{title}:", *(f"  {problem}" for problem in problems[:limit])]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(lines)


def pixel_digest(pixels: np.ndarray) -> str:
    """Return a checksum of an image (C, H, W) in [0, 1], equal for equal pixels in any file format.

    An RGB image whose channels are equal counts as the gray image that ``read_image`` makes of it.
    """
    if len(pixels) == 3 and _colour(pixels) <= GRAY_TOLERANCE:
        pixels = _to_gray(pixels)
    values = np.rint(pixels * 65535).astype("<u2")  # equal for 8 bits and their copy in 16 bits
    digest = hashlib.blake2b(repr(values.shape).encode(), digest_size=16)
    digest.update(values.tobytes())
    return digest.hexdigest()


def white_value(path: str | os.PathLike[str]) -> int | None:
    """Return the value of white by the type of a file, 255 or 65535; None if headers of the file state it."""
    return white_of_pillow(Path(path)) if _reader_for(Path(path)) is read_with_pillow else None


def write_scaled(pixels: np.ndarray, path: str | os.PathLike[str], synthetic: bool = False) -> None:
    """Write an image (C, H, W) in [0, 1] as PNG, gray in 16 bits and RGB in 8, marked if it is synthetic."""
    kind = np.uint16 if len(pixels) == 1 else np.uint8
    values = np.rint(pixels * np.float64(np.iinfo(kind).max)).astype(kind)
    text = PngImagePlugin.PngInfo()
    if synthetic:
        text.add_text(PNG_ENTRY, "true")
    Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0)).save(path, "PNG", pnginfo=text)


def _scaled(pixels: np.ndarray) -> np.ndarray:
    """Return the image that is read from the file of :func:`write_scaled`."""
    white = np.float64(65535 if len(pixels) == 1 else 255)
    return (np.rint(pixels * white) / white).astype(np.float32)


def _reader_for(path: Path) -> Callable[..., np.ndarray]:
    """Choose the reader by the file's first bytes; add formats not read by Pillow here."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if path.is_dir() else "a pipe or device"
        raise DataError(f"{path}: is {kind}, not an image file. Pass the path of a file.")
    try:
        with open(path, "rb") as file:
            head = file.read(352)
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist. Correct the path, or restore the file.") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened: {error.strerror or error}. Check its path and permissions."
        ) from error
    if not head:
        raise DataError(f"{path}: is empty (0 bytes). Fetch the file again.")
    if looks_like_dicom(head):
        return read_dicom
    return read_nifti if looks_like_nifti(head) else read_with_pillow


def _with_channels(pixels: np.ndarray, channels: int | None, path: str | os.PathLike[str]) -> np.ndarray:
    if channels is None or len(pixels) == channels:
        return np.ascontiguousarray(pixels)
    if channels == 3:
        raise DataError(
            f"{path}: has 1 channel, but the bundle needs 3. Choose the bundle for gray images, or use colour images."
        )
    difference = _colour(pixels)
    if difference > GRAY_TOLERANCE:
        raise DataError(
            f"{path}: is coloured (its channels differ by up to {difference:.0f} of 255), but the bundle needs 1 "
            "channel. Convert it to gray, or choose the bundle for colour images."
        )
    return _to_gray(pixels)


def _colour(pixels: np.ndarray) -> float:
    """Return by how much the channels of an image (C, H, W) in [0, 1] differ at most, of 255."""
    return round(float(np.max(pixels.max(0) - pixels.min(0))) * 255, 3)


def _to_gray(pixels: np.ndarray) -> np.ndarray:
    return pixels.mean(0, keepdims=True, dtype=np.float64).astype(np.float32)

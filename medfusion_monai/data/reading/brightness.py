"""Size and brightness of a set of images: values that fill a small part of their range, images without content."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.images import white_value
from medfusion_monai.data.reading.value_range import ValueRange
from medfusion_monai.runtime.files import renamed_when_whole

logger = logging.getLogger(__name__)

LEAST_SIDE = 16
BINS = 1024
SAMPLED_PIXELS = 2**16
"""Pixels of an image, about, that count for the percentiles."""
SHEET_NAME = "contact_sheet.png"
TILES, COLUMNS = 24, 8
WANTED_RANGE, NARROW_RANGE = 0.5, 0.125


class ImageSurvey:
    """Collects size and brightness of the images of a set, and a contact sheet of some; safe for threads.

    Args:
        paths: all images of the set; those on the contact sheet are spread evenly over it.
        value_range: the range that the user stated for the values, if any: then dark sets are accepted.
        size: height and width of the images on the contact sheet.
        resize_mode: how they get it, ``crop`` or ``pad``.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        value_range: ValueRange | None = None,
        size: Sequence[int] = (128, 128),
        resize_mode: str = "crop",
    ) -> None:
        names = [os.fspath(path) for path in paths]
        self.value_range = value_range
        self._size, self._resize_mode = [*size], resize_mode
        self._tiles: dict[str, np.ndarray] = {}
        self._on_sheet = spread_evenly(names, TILES)
        self._extremes: dict[str, tuple[float, float]] = {}
        self._flat: list[str] = []
        self._histogram = np.zeros(BINS)
        self._lock = Lock()

    def add(self, path: str | os.PathLike[str], pixels: np.ndarray) -> None:
        """Add an image (C, H, W) in [0, 1].

        Raises:
            DataError: for an image below 16 pixels a side, or of a single value.
        """
        name = os.fspath(path)
        refuse_without_content(name, pixels)
        planes = pixels.reshape(len(pixels), -1)
        sample = planes[:, :: max(1, planes.shape[1] // SAMPLED_PIXELS)]
        low, high = np.quantile(sample, (0.05, 0.95), axis=1)
        counts, _ = np.histogram(sample, BINS, (0, 1))
        with self._lock:
            self._extremes[name] = (float(pixels.min()), float(pixels.max()))
            self._histogram += counts / counts.sum()
            if float((high - low).max()) < 1 / 255:
                self._flat.append(name)
            if name in self._on_sheet:
                self._tiles[name] = self._tile(pixels)

    def _tile(self, pixels: np.ndarray) -> np.ndarray:
        """Return an image as the network sees it."""
        # Imported once there is an image: errors of tables and folders come before PyTorch is loaded.
        import torch

        from medfusion_monai.data.reading.resizing import resize_center_crop

        return resize_center_crop(torch.from_numpy(pixels), self._size, self._resize_mode).numpy()

    def describe(self) -> str:
        """Return the 5th and 95th percentile of the pixels, all images counting equally, in words."""
        low, high = self._percentiles()
        return f"brightness {low:.2f} to {high:.2f} (5th and 95th percentile; 0 black, 1 white)"

    def doubts(self) -> list[str]:
        """Return what suggests that values do not fit their range, in words."""
        dark = self._unused_range()
        if dark:
            return [dark]
        narrow = [name for name, (low, high) in self._extremes.items() if high - low < NARROW_RANGE]
        kinds = {"use less than an eighth of the range": narrow, "have one value in 90% of their pixels": self._flat}
        low, high = self._percentiles()
        extreme = f"95% of all pixels are below {high:.2f}" if high < NARROW_RANGE else ""
        extreme = f"95% of all pixels are above {low:.2f}" if low > 1 - NARROW_RANGE else extreme
        return [f"{extreme}: look at the contact sheet"] * bool(extreme) + [
            f"{len(names)} of {len(self._extremes)} images {kind}, first {min(names)}: look at the contact sheet"
            for kind, names in kinds.items()
            if names
        ]

    def report(self) -> None:
        """Log the brightness, with warnings.

        Raises:
            DataError: if no image of the set reaches the upper, or lower, half of the range, with the values found
                and the range to state.
        """
        dark = self._unused_range()
        if dark:
            raise DataError(dark)
        if self._extremes:
            logger.info(self.describe())
            for doubt in self.doubts():
                logger.warning(doubt)

    def write_sheet(self, path: str | os.PathLike[str]) -> None:
        """Write the contact sheet, a PNG file in an existing folder; nothing if there are no images."""
        tiles = [self._tiles[name] for name in self._on_sheet if name in self._tiles]
        if tiles:
            write_contact_sheet(path, tiles)

    def _percentiles(self) -> tuple[float, float]:
        shares = np.cumsum(self._histogram) / max(1e-9, self._histogram.sum())
        low, high = (float(np.searchsorted(shares, share) + 0.5) / BINS for share in (0.05, 0.95))
        return low, high

    def _unused_range(self) -> str:
        if not self._extremes or self.value_range is not None:
            return ""
        brightest = max(self._extremes, key=lambda name: self._extremes[name][1])
        darkest = min(self._extremes, key=lambda name: self._extremes[name][0])
        top, bottom = self._extremes[brightest][1], self._extremes[darkest][0]
        if top <= WANTED_RANGE:
            return f"all {len(self._extremes)} images are dark: {_in_words('up to', top, brightest)}"
        if bottom >= WANTED_RANGE:
            return f"all {len(self._extremes)} images are bright: {_in_words('from', bottom, darkest)}"
        return ""


def refuse_without_content(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Raise if an image (C, H, W) is tiny, or all its pixels are equal.

    Raises:
        DataError: with its size, or its value.
    """
    height, width = pixels.shape[1:]
    if min(height, width) < LEAST_SIDE:
        raise DataError(
            f"{path}: is tiny, {height}x{width} pixels; at least {LEAST_SIDE} per side are needed. Leave it out, or "
            "use the original image."
        )
    low, high = pixels.min((1, 2)), pixels.max((1, 2))
    if (low == high).all():
        value = ", ".join(f"{value:.3g}" for value in low)
        raise DataError(
            f"{path}: is constant, all its pixels are {value} (0 black, 1 white). Leave it out; if it shows something "
            "in a viewer, its window or display range does not fit: state the range of the values with --range."
        )


def spread_evenly(names: Sequence[str], count: int) -> list[str]:
    """Return at most ``count`` items from the first to the last."""
    count = min(count, len(names))
    return [names[round(index * (len(names) - 1) / max(1, count - 1))] for index in range(count)]


def write_contact_sheet(path: str | os.PathLike[str], tiles: Sequence[np.ndarray]) -> None:
    """Write images (C, H, W) in [0, 1] of one size as a grid; its folder must exist.

    Raises:
        DataError: if the file cannot be written.
    """
    height, width = tiles[0].shape[1:]
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((3, rows * (height + 2), columns * (width + 2)), np.float32)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + 2), index % columns * (width + 2)
        sheet[:, top : top + height, left : left + width] = tile
    picture = Image.fromarray(np.rint(sheet.transpose(1, 2, 0) * 255).astype(np.uint8))
    try:
        with renamed_when_whole(Path(path)) as partial:
            picture.save(partial, format="PNG")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}. Choose another place.") from error


def _in_words(limit: str, value: float, path: str) -> str:
    """Return the extreme value of a set in the unit of its files, and what to do."""
    white = white_value(path)
    if white is None:
        return (
            f"their values are {limit} {value:.3g} of the range that their headers state (in {path}; 0 black, 1 "
            f"white). Prepare them with the range of the values, --range LOW HIGH, instead of window or display range"
        )
    found = round(value * white)
    bits = int(found if limit == "up to" else white - found).bit_length()
    wanted = f"e.g. --range 0 {2**bits - 1}" if limit == "up to" else "--range LOW HIGH, before inversion if white is 0"
    return (
        f"their values are {limit} {found} of {white} (in {path}), {bits}-bit data in {white.bit_length()}-bit files. "
        f"Prepare them with the range of the values, {wanted}"
    )

"""Measures the cardiothoracic ratio of chest phantoms, drawn or generated, to check whether a sample fits its class.

As in radiology it is the widest extent of the heart over the widest inner extent of the thorax. It is measured from
the pixels alone, without the parameters of the drawing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from medfusion_monai.demo.phantoms.batch import as_batch

# Rows and columns as parts of the shorter side, measured from the image centre.
CENTRAL_ROWS = (-0.10, 0.20)  # heart and spine are here in every phantom
CENTRAL_COLUMNS = (-0.12, 0.12)
LUNG_ROWS = (-0.20, 0.48)  # from the hila to the costophrenic angles
WORKING_SIZE = 64
MIN_RANGE = 0.05  # between the darkest and the brightest pixels
MIN_CONTRAST = 0.2  # between lung and heart, in parts of that range
MAX_SLOPE = 0.9  # columns per row: the heart's border is upright where it is widest, the diaphragm's never is
MAX_MOVE = 0.8  # columns per row, median over an organ's border
MIN_THORAX = 0.4  # of the shorter side
MAX_REACH = 0.9  # the heart ends before this part of the hemithorax


class _Borders(NamedTuple):
    """Start and end of the lung of one side in each row, in pixels from the central column; NaN for none."""

    inner: np.ndarray
    outer: np.ndarray


def measure_cardiothoracic_ratio(images: Any) -> np.ndarray:
    """Measure heart width over inner thorax width.

    Args:
        images: array or tensor of shape (N, 1, H, W), float in [0, 1].

    Returns:
        float64 of shape (N,), NaN where no lungs or no heart can be found.
    """
    images = as_batch(images, channels=1)
    return np.array([_measure(image[0]) for image in images], dtype=np.float64)


def _measure(image: np.ndarray) -> float:
    if not np.isfinite(image).all() or min(image.shape) < 16:
        return float("nan")
    image = _smooth_rows(_stretch(_reduce(image)))
    center, bright = _central_column(image)
    top, bottom = _span(image.shape[0], min(image.shape), LUNG_ROWS)
    # Each side runs from the central column outwards.
    sides = [image[top:bottom, center::-1], image[top:bottom, center:]]
    step = max(1, round(min(image.shape) / 64))
    heart, thorax = 0.0, 0.0
    for profile in sides:
        extents = _side_extents(profile, bright, step)
        if extents is None:
            return float("nan")
        heart, thorax = heart + extents[0], thorax + extents[1]
    return heart / thorax if thorax > MIN_THORAX * min(image.shape) else float("nan")


def _reduce(image: np.ndarray) -> np.ndarray:
    """Average blocks of pixels, to measure large images at about the working size and with less noise."""
    factor = max(1, min(image.shape) // WORKING_SIZE)
    height, width = (side // factor * factor for side in image.shape)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    blocks = image[top : top + height, left : left + width].reshape(height // factor, factor, width // factor, factor)
    return blocks.mean((1, 3))  # (H, f, W, f) -> (H, W)


def _stretch(image: np.ndarray) -> np.ndarray:
    """Undo differences in brightness and contrast between images."""
    low, high = np.percentile(image, (1, 99))
    return (image - low) / (high - low) if high - low > MIN_RANGE else np.zeros_like(image)


def _smooth_rows(image: np.ndarray) -> np.ndarray:
    """Average each row with its neighbours: noise falls, the upright borders stay as sharp as they are."""
    padded = np.pad(image, ((1, 1), (0, 0)), mode="edge")
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4


def _span(length: int, shorter: int, part: tuple[float, float]) -> tuple[int, int]:
    first, last = (round(length / 2 + share * shorter) for share in part)
    return max(first, 0), min(last, length)


def _central_column(image: np.ndarray) -> tuple[int, float]:
    """Return the spine's column and the brightness of heart and spine."""
    height, width = image.shape
    top, bottom = _span(height, min(image.shape), CENTRAL_ROWS)
    left, right = _span(width, min(image.shape), CENTRAL_COLUMNS)
    means = image[top:bottom, left:right].mean(0)
    center = left + int(np.argmax(means))
    return center, float(means.max())


def _side_extents(profile: np.ndarray, bright: float, step: int) -> tuple[float, float] | None:
    """Return how far heart and thorax reach to one side, in pixels."""
    rough = _borders(profile, 0.62 * bright, 0.62 * bright)
    levels = _levels(profile, rough)
    if levels is None or levels[1] - levels[0] < MIN_CONTRAST:
        return None
    lung, heart, wall = levels
    inner, outer = _borders(profile, (lung + heart) / 2, (lung + wall) / 2)
    if not (_is_contour(inner) and _is_contour(outer)):
        return None
    thorax = float(np.nanmax(_median_of_three(outer)))
    slope = np.full(len(inner), np.nan)
    slope[step:-step] = (inner[2 * step :] - inner[: -2 * step]) / (2 * step)
    upright = (np.abs(slope) < MAX_SLOPE) & (inner < MAX_REACH * thorax)  # NaN compares as False
    # Two rows together, as noise can make the diaphragm look upright in one.
    pairs = np.minimum(inner[:-1], inner[1:])[upright[:-1] & upright[1:]]
    return (float(pairs.max()), thorax) if len(pairs) else None


def _borders(profile: np.ndarray, inner_level: float, outer_level: float) -> _Borders:
    """Find in each row, outwards, the first fall below a level and the first rise above one after it."""
    columns = np.arange(profile.shape[1])[None]
    dark = profile < inner_level
    first = np.where(dark.any(1), dark.argmax(1), profile.shape[1])[:, None]
    wall = (profile > outer_level) & (columns > first)
    last = np.where(wall.any(1), wall.argmax(1), 0)[:, None]
    found = ((first > 0) & (last > first))[:, 0]
    inner, outer = _crossing(profile, first[:, 0], inner_level), _crossing(profile, last[:, 0], outer_level)
    return _Borders(np.where(found, inner, np.nan), np.where(found, outer, np.nan))


def _crossing(profile: np.ndarray, column: np.ndarray, level: float) -> np.ndarray:
    """Return the crossing of a level between a column and the previous one, by linear interpolation."""
    rows = np.arange(len(profile))
    column = np.clip(column, 1, profile.shape[1] - 1)
    before, after = profile[rows, column - 1], profile[rows, column]
    difference = np.where(after == before, 1.0, after - before)
    return column - 1 + np.clip((level - before) / difference, 0, 1)


def _levels(profile: np.ndarray, borders: _Borders) -> tuple[float, float, float] | None:
    """Return the brightness of lung, heart near its border, and chest wall."""
    rows = np.flatnonzero(np.isfinite(borders.inner) & (borders.outer - borders.inner > 1.5))
    if not len(rows):
        return None
    columns = np.arange(profile.shape[1])[None]
    inner, outer, values = borders.inner[rows, None], borders.outer[rows, None], profile[rows]
    unit = max(1.0, float(np.nanmax(borders.outer)) / 25)
    lung = values[(columns > inner) & (columns < outer)]
    heart = values[(columns < inner - unit) & (columns > inner - 5 * unit)]
    wall = np.where((columns > outer) & (columns < outer + 4 * unit), values, -np.inf).max(1)
    wall = wall[np.isfinite(wall)]
    if not (len(lung) and len(heart) and len(wall)):
        return None
    return float(np.percentile(lung, 35)), float(np.median(heart)), float(np.median(wall))


def _is_contour(border: np.ndarray) -> bool:
    """Return whether a border is an organ's, present in most rows and moving little between rows, and not noise."""
    moves = np.abs(np.diff(border))
    moves = moves[np.isfinite(moves)]
    return len(moves) > 0.5 * len(border) and float(np.median(moves)) < MAX_MOVE


def _median_of_three(values: np.ndarray) -> np.ndarray:
    """Return the median of each value and its neighbours; NaN if one of them is NaN."""
    return np.median(np.stack([values[:-2], values[1:-1], values[2:]]), axis=0)

"""Measures the cup-to-disc ratio of fundus phantoms, drawn or generated, to check whether a sample fits its class.

As in ophthalmology it is the height of the pale cup over the height of the optic disc. It is measured from the pixels
alone, without the parameters of the drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from medfusion_monai.demo.phantoms.batch import as_batch

WORKING_SIZE = 64
MIN_RANGE = 0.05  # between the darkest and the brightest pixels
FIELD_LEVEL, MIN_FIELD = 0.3, 0.4  # red where the field is; its share of the image
MIN_REDNESS, MIN_YELLOWNESS = 0.15, 0.03  # red less green, green less blue, mean of the field
MIN_CONTRAST = 0.15  # between cup and fundus, in parts of the range

# Lengths are parts of the shorter side.
SEARCH_RADIUS = 0.09  # half the box whose mean is largest in the disc
REACH = 0.40  # how far from its centre the disc's border is looked for
DISC_RADII = (0.09, 0.33)
CUP_RADII = (0.03, 0.25)
VESSEL = 0.03  # half the width of the widest vessel
BRIGHTEST = 0.0015  # area of the image whose mean is the brightness of the cup

# The rim's colour is about halfway from the fundus' to the cup's; a border is where the colour is halfway again.
DISC_LEVEL, CUP_LEVEL = 0.24, 0.74
NUM_ANGLES = 48
STEP = 0.5  # pixels along a ray
MIN_RIM = 8  # pixels that its colour is taken from
MAX_RATIO = 0.76  # a disc without a cup has one border, which passes both levels close together
MIN_SHARE = 0.5  # of the rays, which must cross the level close to the smooth contour
TOLERANCE, MIN_TOLERANCE = 0.12, 0.7  # how close: in parts of its radius, and in pixels at least
INWARD = 0.4  # how far inside the contour a point counts half, in parts of how far outside


class _Contour(NamedTuple):
    """A closed border in pixels: its distances from the centre at equal steps of the angle, their mean, its height."""

    center: tuple[float, float]
    distances: np.ndarray
    radius: float
    height: float


def measure_cup_to_disc_ratio(images: Any) -> np.ndarray:
    """Measure cup height over disc height.

    Args:
        images: array or tensor of shape (N, 3, H, W), float RGB in [0, 1].

    Returns:
        float64 of shape (N,), NaN where no disc or no cup can be found.
    """
    images = as_batch(images, channels=3)
    return np.array([_measure(image) for image in images], dtype=np.float64)


def _measure(image: np.ndarray) -> float:
    if not np.isfinite(image).all() or min(image.shape[1:]) < 16:
        return float("nan")
    image = _stretch(_reduce(image))
    side, field, pale = min(image.shape[1:]), image[0] > FIELD_LEVEL, image[1:].mean(0)
    if field.mean() < MIN_FIELD or not _is_orange(*image[:, field].mean(1)):
        return float("nan")
    pale = _fill_vessels(pale, round(VESSEL * side))
    found = _find_disc(pale, field, side)
    if found is None:
        return float("nan")
    center, fundus, brightest = found
    levels = [fundus + share * (brightest - fundus) for share in (DISC_LEVEL, CUP_LEVEL)]
    borders = _disc_and_cup(pale, center, levels)
    if borders is not None:  # again, with the colours that lie between these borders
        borders = _disc_and_cup(pale, borders[0].center, _levels(pale, *borders))
    if borders is None:
        return float("nan")
    disc, cup = borders
    ratio = cup.height / disc.height
    return ratio if ratio < MAX_RATIO else float("nan")


def _is_orange(red: float, green: float, blue: float) -> bool:
    """Distinguish the fundus from gray images and from tissue stained pink and purple."""
    return red - green > MIN_REDNESS and green - blue > MIN_YELLOWNESS


def _reduce(image: np.ndarray) -> np.ndarray:
    """Average blocks of pixels, to measure large images at about the working size and with less noise."""
    channels, *shape = image.shape
    factor = max(1, min(shape) // WORKING_SIZE)
    height, width = (side // factor * factor for side in shape)
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    blocks = image[:, top : top + height, left : left + width]
    # (C, H, W) -> (C, H/f, f, W/f, f)
    return blocks.reshape(channels, height // factor, factor, width // factor, factor).mean((2, 4))


def _stretch(image: np.ndarray) -> np.ndarray:
    """Undo differences in brightness and contrast between images, the same for all colours."""
    low, high = np.percentile(image, (1, 99))
    return (image - low) / (high - low) if high - low > MIN_RANGE else np.zeros_like(image)


def _fill_vessels(pale: np.ndarray, radius: int) -> np.ndarray:
    """Remove dark, narrow structures by grey closing: the maximum over a square, then the minimum of these."""
    for extreme in (np.max, np.min):
        for axis in (0, 1):
            widths = [(radius, radius) if axis == direction else (0, 0) for direction in (0, 1)]
            padded = np.pad(pale, widths, mode="edge")
            pale = extreme(np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=axis), axis=-1)
    return pale


def _find_disc(pale: np.ndarray, field: np.ndarray, side: int) -> tuple[tuple[float, float], float, float] | None:
    """Return the middle of the brightest region, and the brightness of the fundus around it and of the cup in it.

    None where nothing stands out.
    """
    rows, columns = np.indices(pale.shape)
    box = np.where(field, _box_mean(pale, round(SEARCH_RADIUS * side)), -np.inf)
    row, column = divmod(int(box.argmax()), pale.shape[1])
    center = (float(row), float(column))
    smooth = _box_mean(pale, 1)
    for _ in range(3):
        distance = np.hypot(rows - center[0], columns - center[1])
        inside = distance < 0.20 * side
        around = field & (distance > 0.25 * side) & (distance < 0.40 * side)
        if not around.any():
            return None
        fundus = float(np.median(pale[around]))
        brightest = float(np.sort(smooth[inside])[-max(4, round(BRIGHTEST * side**2)) :].mean())
        if brightest - fundus < MIN_CONTRAST:
            return None
        center = _middle((distance < 0.25 * side) & (smooth > fundus + 0.35 * (brightest - fundus)))
    return center, fundus, brightest


def _middle(region: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(region)
    return float(rows.mean()), float(columns.mean())


def _disc_and_cup(
    pale: np.ndarray, center: tuple[float, float], levels: Sequence[float]
) -> tuple[_Contour, _Contour] | None:
    side = min(pale.shape)
    disc = _contour(pale, center, levels[0], REACH * side)
    if disc is None or not DISC_RADII[0] * side < disc.radius < DISC_RADII[1] * side:
        return None
    region = (_relative_radius(pale.shape, disc) < 1) & (pale > levels[1])
    if not region.any():
        return None
    cup = _contour(pale, _middle(region), levels[1], 1.1 * disc.radius)
    if cup is None or not CUP_RADII[0] * side < cup.radius < CUP_RADII[1] * side:
        return None
    return disc, cup


def _levels(pale: np.ndarray, disc: _Contour, cup: _Contour) -> tuple[float, float]:
    """Return the brightness halfway between fundus and rim, and halfway between rim and cup."""
    from_disc, from_cup = _relative_radius(pale.shape, disc), _relative_radius(pale.shape, cup)
    fundus = _median(pale[(from_disc > 1.15) & (from_disc < 1.4)])
    inside = _median(pale[from_cup < max(0.6, 1.5 / cup.radius)])
    # How far across the rim each pixel lies: 0 at the cup, 1 at the disc's border.
    inwards, outwards = (from_cup - 1) * cup.radius, (1 - from_disc) * disc.radius
    across = inwards / np.maximum(inwards + outwards, 1e-6)
    middle = pale[(inwards > 0) & (outwards > 0) & (across > 0.3) & (across < 0.7)]
    rim = _median(middle) if len(middle) >= MIN_RIM else (fundus + inside) / 2
    return (fundus + rim) / 2, (rim + inside) / 2


def _median(values: np.ndarray) -> float:
    """Return the median, NaN of nothing: no border is found at such a level."""
    return float(np.median(values)) if len(values) else float("nan")


def _relative_radius(shape: tuple[int, ...], contour: _Contour) -> np.ndarray:
    """Return for each pixel its distance from the contour's centre, in parts of the contour's there."""
    rows, columns = np.indices(shape)
    y, x = rows - contour.center[0], columns - contour.center[1]
    angles = np.arange(NUM_ANGLES) * (2 * np.pi / NUM_ANGLES)
    return np.hypot(y, x) / np.interp(np.arctan2(y, x), angles, contour.distances, period=2 * np.pi)


def _box_mean(image: np.ndarray, radius: int) -> np.ndarray:
    """Return the mean over a square around each pixel; the border is repeated."""
    padded = np.pad(image, radius, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=0).mean(-1)
    return np.lib.stride_tricks.sliding_window_view(windows, 2 * radius + 1, axis=1).mean(-1)


def _contour(pale: np.ndarray, center: tuple[float, float], level: float, reach: float) -> _Contour | None:
    """Fit a smooth closed curve to the last crossings of a level along rays from the centre.

    Distance from the centre is a second-order Fourier series of the angle, fitted with weights that leave out rays
    along vessels, which meet the border too early or not at all.
    """
    for _ in range(2):  # repeated from the middle of the first result
        angles = np.arange(NUM_ANGLES) * (2 * np.pi / NUM_ANGLES)
        distance = _last_crossing(_rays(pale, center, angles, reach), level)
        distances = _fit_series(angles, distance)
        if distances is None or distances.min() <= 0:
            return None
        radius = float(distances.mean())
        y, x = distances * np.sin(angles), distances * np.cos(angles)
        near = np.abs(distance - distances) < max(MIN_TOLERANCE, TOLERANCE * radius)  # NaN compares as False
        contour = _Contour(center, distances, radius, float(y.max() - y.min()))
        center = (center[0] + float(y.max() + y.min()) / 2, center[1] + float(x.max() + x.min()) / 2)
    return contour if near.mean() > MIN_SHARE else None


def _rays(pale: np.ndarray, center: tuple[float, float], angles: np.ndarray, reach: float) -> np.ndarray:
    """Sample the image along rays, (angles, steps), by bilinear interpolation; the border is repeated."""
    steps = np.arange(0, reach, STEP)[None]
    y = np.clip(center[0] + steps * np.sin(angles)[:, None], 0, pale.shape[0] - 1.001)
    x = np.clip(center[1] + steps * np.cos(angles)[:, None], 0, pale.shape[1] - 1.001)
    top, left = y.astype(int), x.astype(int)
    down, right = y - top, x - left
    upper = pale[top, left] * (1 - right) + pale[top, left + 1] * right
    lower = pale[top + 1, left] * (1 - right) + pale[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def _last_crossing(rays: np.ndarray, level: float) -> np.ndarray:
    """Return, in pixels, the last fall of each ray below the level; NaN if it is never above, or above at its end."""
    above = rays > level
    last = rays.shape[1] - 1 - above[:, ::-1].argmax(1)
    found = above.any(1) & (last < rays.shape[1] - 1)
    index = np.arange(len(rays))
    last = np.minimum(last, rays.shape[1] - 2)
    before, after = rays[index, last], rays[index, last + 1]
    drop = np.where(found, before - after, 1.0)
    return np.where(found, STEP * (last + (before - level) / drop), np.nan)


def _fit_series(angles: np.ndarray, distance: np.ndarray) -> np.ndarray | None:
    """Return the smooth distance at each angle; None if fewer than half of the angles have one."""
    valid = np.isfinite(distance)
    if valid.sum() < NUM_ANGLES / 2:
        return None
    terms = [np.ones_like(angles)] + [part(order * angles) for order in (1, 2) for part in (np.cos, np.sin)]
    basis = np.stack(terms, axis=1)
    smooth = np.full(NUM_ANGLES, np.median(distance[valid]))
    for _ in range(4):
        residual = (distance - smooth)[valid]
        scale = max(0.2, 1.5 * float(np.median(np.abs(residual))))
        # Vessels only reduce the disc: points inside the contour are trusted less than those outside.
        weights = 1 / (1 + (residual / np.where(residual < 0, INWARD * scale, scale)) ** 2)
        normal = (basis[valid] * weights[:, None]).T
        smooth = basis @ np.linalg.solve(normal @ basis[valid], normal @ distance[valid])
    return smooth

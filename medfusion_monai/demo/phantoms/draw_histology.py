"""Histology phantoms: drawn haematoxylin and eosin (H&E) tiles of colorectal tumour, classed by their lymphocytes.

They replace patients in tests and demonstrations. The label depends only on the number of lymphocytes per area:
microsatellite-unstable tumours (MSI) are infiltrated by many, microsatellite-stable ones (MSS) by few. Glands, spindle
cells, stain and exposure vary independently, and the colour of the tile does not reveal the label.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from medfusion_monai.demo.phantoms.drawing import checked_size, pixel_grid, smooth_inside

CLASS_NAMES = ("msi", "mss")
LYMPHOCYTE_RANGES = ((9, 13), (1, 3))  # in a square image, both ends included

LYMPHOCYTE_RADIUS = 0.09
LYMPHOCYTE_SPACING = 0.25  # least distance between two
GLAND_MARGIN = 0.15  # from a gland to the centre of a lymphocyte
NUCLEUS_SOFTNESS = 0.009
NUCLEUS_PERIOD = 0.085  # along the gland's wall
MAX_GLAND_SHARE = 0.42  # of the image, which leaves enough stroma for all lymphocytes
NOISE_STD = 0.006

# Optical density of the stains in red, green and blue: means of H&E slides, each of length 1.
HEMATOXYLIN = (0.64, 0.69, 0.34)
EOSIN = (0.16, 0.86, 0.48)


class _Gland(NamedTuple):
    """A wobbly ellipse; its wall is ``height`` thick and lined with nuclei, which stand on the outer edge."""

    y: float
    x: float
    radius: float
    aspect: float
    angle: float
    wobble: np.ndarray  # (2, 3): size and phase of the harmonics 2 to 4 of the outline
    height: float
    folds: np.ndarray  # (2, 3): likewise of the lumen
    nuclei: np.ndarray  # (3, number): depth, half length and darkness
    secretion: float  # of the lumen's area darkened by it


class _Cells(NamedTuple):
    """Single nuclei of the stroma, (number,) each."""

    y: np.ndarray
    x: np.ndarray
    long: np.ndarray
    short: np.ndarray
    angle: np.ndarray
    darkness: np.ndarray


def draw_histology_phantom(
    seed: int, label: int, size: int | tuple[int, int] = 64
) -> tuple[np.ndarray, dict[str, float]]:
    """Draw one phantom.

    Args:
        seed: decides everything but the class.
        label: 0 for many lymphocytes (MSI), 1 for few (MSS).
        size: pixels, one number for both sides or (H, W).

    Returns:
        The image, float32 of shape (3, H, W) in [0, 1], and its truth: ``lymphocytes``, their number;
        ``lymphocyte_density``, the number per square of the shorter side's length; ``glands``, their number;
        ``stroma_share`` of the image, and ``lymphocyte_radius`` in pixels.
    """
    if label not in (0, 1):
        raise ValueError(f"label is {label!r}: use 0 (MSI, many lymphocytes) or 1 (MSS, few lymphocytes).")
    height, width = checked_size(size)
    rng = np.random.default_rng([seed, label])
    extent = np.array([height, width]) / min(height, width)  # half the sides
    area = float(extent.prod())
    # Space for the largest number in both classes: otherwise glands would be larger in the class with few lymphocytes.
    most = round(LYMPHOCYTE_RANGES[0][1] * area)
    glands, places = _lay_out(rng, extent, most)
    number = round(rng.integers(*LYMPHOCYTE_RANGES[label], endpoint=True) * area)
    fibres = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi), rng.uniform(0.03, 0.08)
    lymphocytes = _lymphocytes(rng, places[:number])
    spindles = _spindles(rng, extent, glands, places[:number], fibres)

    rows, columns = pixel_grid(height, width)
    hematoxylin, eosin, stroma = _stroma(rng, rows, columns, fibres)
    for gland in glands:
        hematoxylin, eosin, stroma = _add_gland(gland, rows, columns, hematoxylin, eosin, stroma)
    for cells in (spindles, lymphocytes):
        _add_cells(cells, rows, columns, hematoxylin)
    image = _expose(rng, hematoxylin, eosin, rows, columns)
    return image.astype(np.float32), {
        "lymphocytes": float(number),
        "lymphocyte_density": number / area,
        "glands": float(len(glands)),
        "stroma_share": float(stroma.mean()),
        "lymphocyte_radius": LYMPHOCYTE_RADIUS * min(height, width) / 2,
    }


def _lay_out(rng: np.random.Generator, extent: np.ndarray, number: int) -> tuple[list[_Gland], np.ndarray]:
    """Return glands and, between them, places for a number of lymphocytes, (number, 2) of y and x."""
    while True:
        glands = _place_glands(rng, extent)
        room = extent - 1.3 * LYMPHOCYTE_RADIUS
        candidates = rng.uniform(-room, room, (40 * number, 2))
        free = np.ones(len(candidates), bool)
        for gland in glands:
            free &= _depth(gland, candidates[:, 0], candidates[:, 1])[0] < -GLAND_MARGIN
        places = _apart(candidates[free], number)
        if len(places) == number:
            return glands, places


def _apart(candidates: np.ndarray, number: int) -> np.ndarray:
    """Keep points in order up to a number, leaving out those close to a kept one."""
    kept: list[np.ndarray] = []
    while len(candidates) and len(kept) < number:
        kept.append(candidates[0])
        candidates = candidates[((candidates - candidates[0]) ** 2).sum(1) > LYMPHOCYTE_SPACING**2]
    return np.array(kept).reshape(-1, 2)


def _place_glands(rng: np.random.Generator, extent: np.ndarray) -> list[_Gland]:
    """Draw one or two glands to a square, apart from each other, some of them cut by the image's edge."""
    area = 4 * float(extent.prod())
    wanted = round(rng.integers(1, 2, endpoint=True) * area / 4)
    glands: list[_Gland] = []
    covered = 0.0
    for _ in range(12 * wanted):
        y, x = rng.uniform(-extent * 0.75, extent * 0.75)
        radius = rng.uniform(0.40, 0.66)
        share = np.pi * radius**2 / area
        apart = all(math.hypot(y - other.y, x - other.x) > radius + other.radius + 0.08 for other in glands)
        if apart and covered + share < MAX_GLAND_SHARE and len(glands) < wanted:
            glands.append(_draw_gland(rng, float(y), float(x), radius))
            covered += share
    return glands


def _draw_gland(rng: np.random.Generator, y: float, x: float, radius: float) -> _Gland:
    aspect = rng.uniform(0.72, 1.0)
    height = rng.uniform(0.52, 0.68) * min(radius * aspect, 0.42)
    number = round(2 * np.pi * radius / NUCLEUS_PERIOD)
    nuclei = np.stack(
        [
            0.34 * height + rng.uniform(-0.02, 0.03, number),
            rng.uniform(0.055, 0.075, number),
            rng.uniform(0.75, 1.05) * rng.uniform(0.85, 1.15, number),
        ]
    )
    return _Gland(
        y=y,
        x=x,
        radius=radius,
        aspect=aspect,
        angle=rng.uniform(0, np.pi),
        wobble=np.stack([rng.uniform(0.0, 0.035, 3), rng.uniform(0, 2 * np.pi, 3)]),
        height=height,
        folds=np.stack([rng.uniform(0.0, 0.2, 3), rng.uniform(0, 2 * np.pi, 3)]),
        nuclei=nuclei,
        secretion=rng.uniform(0, 0.10),
    )


def _harmonics(angle: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    sizes, phases = parameters.tolist()
    return sum(
        size * np.cos(order * angle + phase) for order, size, phase in zip((2, 3, 4), sizes, phases, strict=True)
    )


def _depth(gland: _Gland, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how deep points lie inside a gland, their angle around it, and their part of its radius there."""
    y, x = y - gland.y, x - gland.x
    cosine, sine = math.cos(gland.angle), math.sin(gland.angle)
    along, across = cosine * x + sine * y, (cosine * y - sine * x) / gland.aspect
    angle = np.arctan2(across, along)
    radius = gland.radius * (1 + _harmonics(angle, gland.wobble))
    part = np.hypot(along, across) / radius
    # The outline's own distance from the centre in this direction
    outline = radius * np.sqrt(np.cos(angle) ** 2 + (gland.aspect * np.sin(angle)) ** 2)
    return (1 - part) * outline, angle, part


def _lymphocytes(rng: np.random.Generator, places: np.ndarray) -> _Cells:
    number = len(places)
    long = LYMPHOCYTE_RADIUS * rng.uniform(0.96, 1.06, number)
    return _Cells(
        y=places[:, 0],
        x=places[:, 1],
        long=long,
        short=long * rng.uniform(0.92, 1.0, number),
        angle=rng.uniform(0, np.pi, number),
        darkness=rng.uniform(1.55, 1.8, number),
    )


def _spindles(
    rng: np.random.Generator,
    extent: np.ndarray,
    glands: list[_Gland],
    lymphocytes: np.ndarray,
    fibres: tuple[float, float, float],
) -> _Cells:
    """Scatter the slender nuclei of fibroblasts along the fibres, clear of glands and lymphocytes."""
    number = round(rng.integers(5, 13) * float(extent.prod()))
    places = rng.uniform(-extent, extent, (number, 2))
    free = np.ones(number, bool)
    for gland in glands:
        free &= _depth(gland, places[:, 0], places[:, 1])[0] < -0.05
    for place in lymphocytes:
        free &= ((places - place) ** 2).sum(1) > 0.17**2
    places = places[free]
    number = len(places)
    return _Cells(
        y=places[:, 0],
        x=places[:, 1],
        long=rng.uniform(0.07, 0.12, number),
        short=rng.uniform(0.016, 0.026, number),
        angle=fibres[0] + rng.normal(0, 0.25, number),
        darkness=rng.uniform(0.28, 0.45, number),
    )


def _stroma(
    rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray, fibres: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return haematoxylin, eosin and the share of stroma, (H, W) each, before glands and cells are laid on it."""
    angle, phase, strength = fibres
    along = np.cos(angle) * columns + np.sin(angle) * rows
    across = np.cos(angle) * rows - np.sin(angle) * columns + 0.10 * np.sin(2.3 * along + phase)
    waves = np.sin(across * 2 * np.pi / 0.62 + 2 * phase) + 0.8 * np.sin(across * 2 * np.pi / 0.27 + 5 * phase)
    waves = waves + 0.5 * np.sin(across * 2 * np.pi / 0.09 + 1.5 * np.sin(3.1 * along + phase))
    eosin = rng.uniform(0.42, 0.58) * (1 + strength * waves)
    return np.full_like(eosin, rng.uniform(0.05, 0.15)), eosin, np.ones_like(eosin)


def _add_gland(
    gland: _Gland,
    rows: np.ndarray,
    columns: np.ndarray,
    hematoxylin: np.ndarray,
    eosin: np.ndarray,
    stroma: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw epithelium and lumen over the stroma."""
    depth, angle, part = _depth(gland, rows, columns)
    inside = smooth_inside(-depth)
    wall = gland.height * (1 + part * _harmonics(angle, gland.folds))  # no folds at the centre, where angles meet
    lumen = smooth_inside(wall - depth, 0.02)
    band = np.exp(-(((depth - 0.34 * gland.height) / 0.075) ** 2))
    nuclei = _nuclei(gland, depth, angle, part)
    own_hematoxylin = 0.18 + 0.25 * band + 0.50 * nuclei
    own_eosin = 0.44 - 0.10 * band
    secretion = gland.secretion * (0.5 + 0.5 * np.cos(9 * rows) * np.cos(7 * columns))
    own_hematoxylin = own_hematoxylin + (0.02 - own_hematoxylin) * lumen
    own_eosin = own_eosin + (0.02 + secretion - own_eosin) * lumen
    return (
        hematoxylin + (own_hematoxylin - hematoxylin) * inside,
        eosin + (own_eosin - eosin) * inside,
        stroma * (1 - inside),
    )


def _nuclei(gland: _Gland, depth: np.ndarray, angle: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Draw the ring of upright nuclei: ellipses in the coordinates along and across the wall."""
    depths, lengths, darkness = gland.nuclei
    number = len(depths)
    grid = np.linspace(-np.pi, np.pi, 181)
    steps = gland.radius * np.sqrt(np.sin(grid) ** 2 + (gland.aspect * np.cos(grid)) ** 2)
    arc = np.concatenate([[0.0], np.cumsum((steps[1:] + steps[:-1]) / 2)])
    phase = np.interp(angle, grid, arc / arc[-1] * number)
    index = np.minimum(phase.astype(int), number - 1)
    period = arc[-1] * (grid[1] - grid[0]) / number
    sideways = (phase - index - 0.5) * period * part
    long, short = lengths[index], 0.42 * period
    radius = np.sqrt((sideways / short) ** 2 + ((depth - depths[index]) / long) ** 2)
    return darkness[index] * smooth_inside((radius - 1) * short, NUCLEUS_SOFTNESS)


def _add_cells(cells: _Cells, rows: np.ndarray, columns: np.ndarray, hematoxylin: np.ndarray) -> None:
    """Draw nuclei over the tissue, each within its own small window."""
    unit = float(rows[1, 0] - rows[0, 0])
    for y, x, long, short, angle, darkness in zip(*cells, strict=True):
        reach = long + 8 * NUCLEUS_SOFTNESS
        top, bottom = np.searchsorted(rows[:, 0], (y - reach, y + reach + unit))
        left, right = np.searchsorted(columns[0], (x - reach, x + reach + unit))
        window = np.s_[top:bottom, left:right]
        down, aside = rows[top:bottom] - y, columns[:, left:right] - x
        along, across = np.cos(angle) * aside + np.sin(angle) * down, np.cos(angle) * down - np.sin(angle) * aside
        radius = np.sqrt((along / long) ** 2 + (across / short) ** 2) + 1e-6
        slope = np.sqrt((along / long**2) ** 2 + (across / short**2) ** 2) / radius + 1e-6
        mask = smooth_inside((radius - 1) / slope, NUCLEUS_SOFTNESS)  # first-order distance to an ellipse
        hematoxylin[window] += (darkness - hematoxylin[window]) * mask


def _expose(
    rng: np.random.Generator, hematoxylin: np.ndarray, eosin: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Vary stain strength and hue, and light, as between laboratories and scanners, and add a little noise."""
    vectors = np.array([HEMATOXYLIN, EOSIN]) + rng.uniform(-0.035, 0.035, (2, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    strengths = rng.uniform(0.75, 1.25), rng.uniform(0.70, 1.30)
    stains = np.stack([strengths[0] * hematoxylin, strengths[1] * eosin])
    light = rng.uniform(0.92, 0.99) * (1 + rng.uniform(-0.02, 0.02) * rows + rng.uniform(-0.02, 0.02) * columns)
    image = light * np.exp(-np.einsum("sc,shw->chw", vectors, stains))  # Beer-Lambert
    return np.clip(image + rng.normal(0, NOISE_STD, image.shape), 0, 1)

"""Counts lymphocytes of histology phantoms, drawn or generated, to check whether a sample fits its class.

As in pathology it counts small round nuclei, darker than all others, per area of the slide. It is measured from the
pixels alone, without the parameters of the drawing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medfusion_monai.demo.phantoms.batch import as_batch

WORKING_SIZE = 64
# Optical density of haematoxylin, eosin and the residual, in red, green and blue: rows of length 1, the third
# at right angles to the others.
STAINS = np.array([[0.640, 0.690, 0.340], [0.160, 0.862, 0.481], [0.076, -0.497, 0.865]])
MIN_BRIGHTNESS = 0.02  # below, optical density is mostly noise
BLOB_SIGMA = 1.9  # pixels at the working size: the radius of a lymphocyte over the square root of two
MIN_BLOB = 0.15  # curvature of haematoxylin times the squared sigma: most lymphocytes have 0.45, other nuclei 0.07
TISSUE_SIGMA = 2.0
MIN_EOSIN = 0.10  # of tissue, which may be dark with haematoxylin too
MAX_RESIDUAL = 0.35  # in parts of the eosin: gray has 1.7, orange 0.6
MIN_TISSUE = 0.4  # of the image
MIN_STRUCTURE = 0.15  # difference of haematoxylin between nuclei and background


def measure_lymphocyte_density(images: Any) -> np.ndarray:
    """Count lymphocytes per square of the shorter side's length: in a square image, their number.

    Args:
        images: array or tensor of shape (N, 3, H, W), float in [0, 1].

    Returns:
        float64 of shape (N,), NaN where no stained tissue can be found.
    """
    images = as_batch(images, channels=3)
    return np.array([_measure(image) for image in images], dtype=np.float64)


def _measure(image: np.ndarray) -> float:
    height, width = image.shape[1:]
    if not np.isfinite(image).all() or min(height, width) < 16:
        return float("nan")
    stains = _separate_stains(_reduce(image))
    scale = min(stains.shape[1:]) / WORKING_SIZE
    if not _is_tissue(stains, TISSUE_SIGMA * scale):
        return float("nan")
    return len(_blob_places(stains[0], BLOB_SIGMA * scale)) / (height * width / min(height, width) ** 2)


def lymphocyte_places(image: np.ndarray) -> np.ndarray:
    """Return the centres (N, 2), row and column in pixels, of the lymphocytes of an image (3, H, W)."""
    stains = _separate_stains(_reduce(image))
    factor = image.shape[1] / stains.shape[1]
    return (_blob_places(stains[0], BLOB_SIGMA * min(stains.shape[1:]) / WORKING_SIZE) + 0.5) * factor - 0.5


def _reduce(image: np.ndarray) -> np.ndarray:
    """Average blocks of pixels, to measure large images at about the working size and with less noise."""
    channels, height, width = image.shape
    factor = max(1, min(height, width) // WORKING_SIZE)
    height, width = height // factor, width // factor
    blocks = image[:, : height * factor, : width * factor].reshape(channels, height, factor, width, factor)
    return blocks.mean((2, 4))  # (C, H, f, W, f) -> (C, H, W)


def _separate_stains(image: np.ndarray) -> np.ndarray:
    """Return haematoxylin, eosin and residual, (3, H, W), by colour deconvolution (Ruifrok and Johnston 2001)."""
    density = -np.log(np.clip(image, MIN_BRIGHTNESS, 1))
    return np.einsum("chw,cs->shw", density, np.linalg.inv(STAINS))


def _is_tissue(stains: np.ndarray, sigma: float) -> bool:
    """Distinguish H&E from other images: much of it is pink, and some of it purple."""
    hematoxylin, eosin, residual = _blur(stains, sigma)
    pink = (eosin > MIN_EOSIN) & (np.abs(residual) < MAX_RESIDUAL * eosin)
    # Two of a thousand pixels are darker: a single lymphocyte, which covers six of a thousand, is structure.
    structure = np.percentile(hematoxylin, 99.8) - np.percentile(hematoxylin, 30)
    return bool(pink.mean() > MIN_TISSUE and structure > MIN_STRUCTURE)


def _blob_places(hematoxylin: np.ndarray, sigma: float) -> np.ndarray:
    """Return the round maxima, (N, 2): a ring of nuclei or a spindle is strongly curved in one direction only."""
    padded = np.pad(_blur(hematoxylin, sigma), 1, mode="symmetric")
    center = padded[1:-1, 1:-1]
    rows = padded[2:, 1:-1] + padded[:-2, 1:-1] - 2 * center
    columns = padded[1:-1, 2:] + padded[1:-1, :-2] - 2 * center
    mixed = (padded[2:, 2:] + padded[:-2, :-2] - padded[2:, :-2] - padded[:-2, 2:]) / 4
    # The smaller eigenvalue of the negative Hessian
    curvature = -(sigma**2) * ((rows + columns) / 2 + np.sqrt((rows - columns) ** 2 / 4 + mixed**2))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(curvature, 1, constant_values=-np.inf), (3, 3))
    return np.argwhere((curvature == windows.max((2, 3))) & (curvature > MIN_BLOB))


def _blur(array: np.ndarray, sigma: float) -> np.ndarray:
    """Blur the last two axes with a Gaussian; the edges are mirrored."""
    reach = round(3 * sigma)
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    for axis in (-2, -1):
        pad = [(0, 0)] * array.ndim
        pad[axis] = (reach, reach)
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(array, pad, mode="symmetric"), len(taps), axis)
        array = windows @ taps
    return array

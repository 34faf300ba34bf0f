"""Drawing functions shared by the phantoms of all modalities.

Lengths are in units of half the shorter image side, y points down, and the origin is the image centre.
"""

from __future__ import annotations

import numpy as np

SOFTNESS = 0.014  # width of an edge, independent of the pixel size


def checked_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width in pixels; raise a ValueError below 16."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 16:
        raise ValueError(f"size is {size!r}: use at least 16 pixels per side.")
    return height, width


def pixel_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return y (H, 1) and x (1, W) of the pixels' centres."""
    unit = min(height, width) / 2
    rows = ((np.arange(height) + 0.5 - height / 2) / unit).astype(np.float32)[:, None]
    columns = ((np.arange(width) + 0.5 - width / 2) / unit).astype(np.float32)[None]
    return rows, columns


def smooth_inside(distance: np.ndarray, softness: float = SOFTNESS) -> np.ndarray:
    """Convert a signed distance, negative inside, to a mask with a soft edge."""
    return 0.5 - 0.5 * np.tanh(distance / (2 * softness))


def smooth_max(first: np.ndarray, second: np.ndarray, radius: float) -> np.ndarray:
    """Return the larger value, with the crease rounded over about the radius."""
    return 0.5 * (first + second + np.sqrt((first - second) ** 2 + radius**2))

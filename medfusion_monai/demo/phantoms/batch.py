"""The input of all measurements of phantoms."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_batch(images: Any, channels: int) -> np.ndarray:
    """Return images as float64 of shape (N, channels, H, W); raise a ValueError for another shape."""
    if hasattr(images, "detach"):
        images = images.detach().cpu().float().numpy()
    images = np.asarray(images, dtype=np.float64)
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(f"images have shape {images.shape} instead of (N, {channels}, H, W).")
    return images

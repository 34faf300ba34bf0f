"""How alike two images are."""

from __future__ import annotations

from monai.metrics.regression import compute_ms_ssim
from torch import Tensor

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five scales (Wang et al. 2003, section 3.2)."""


def ms_ssim_window(height: int, width: int) -> int:
    """Give the side of the largest window, odd and at most 11, with which five scales fit into an image.

    From 176 pixels on it is the usual 11; at 64 pixels it is 3.

    Raises:
        ValueError: if the image is too small for five scales of a 3x3 window (below 48 pixels).
    """
    window = min(11, min(height, width) // 2 ** (len(SCALE_WEIGHTS) - 1))
    window -= 1 - window % 2
    if window < 3:
        raise ValueError(f"MS-SSIM needs images of at least 48x48 pixels, received {height}x{width}")
    return window


def ms_ssim(prediction: Tensor, image: Tensor, window: int | None = None) -> Tensor:
    """Multi-scale SSIM (Wang et al. 2003) of five scales, one value an image.

    Args:
        prediction: (B, C, H, W) in [0, 1].
        image: of the same shape and range.
        window: side of the Gaussian window of sigma 1.5; the largest that fits, at most 11, if None.

    Returns:
        (B,), at most 1.
    """
    window = window or ms_ssim_window(*image.shape[-2:])
    return compute_ms_ssim(prediction, image, 2, kernel_size=window, weights=SCALE_WEIGHTS).flatten()

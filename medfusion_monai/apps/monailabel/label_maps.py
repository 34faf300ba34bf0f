"""Label maps from differences between images: what a client can draw over a study."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from medfusion_monai.editing.anomaly import smoothed
from medfusion_monai.runtime.values import check_numbers

APPEARS, DISAPPEARS, MARKED = 1, 2, 1
"""Values in a label map: brighter and darker in the counterfactual; an anomaly or a new region."""
THRESHOLD = 0.05


def change_map(difference: Tensor, threshold: float = THRESHOLD) -> np.ndarray:
    """Mark where a counterfactual is brighter (``APPEARS``) and where it is darker (``DISAPPEARS``).

    Args:
        difference: (C, H, W), counterfactual minus image, both in [0, 1].
        threshold: mean absolute difference of the channels above which a pixel is marked.

    Returns:
        uint8 (H, W).

    Raises:
        ValueError: for a threshold outside [0, 1].
    """
    signed = difference.mean(0).numpy()
    marked = marked_map(difference.abs().mean(0), threshold)
    return np.where(marked > 0, np.where(signed > 0, APPEARS, DISAPPEARS), 0).astype(np.uint8)


def marked_map(values: Tensor, threshold: float) -> np.ndarray:
    """Mark where values (H, W) are above a threshold; return uint8 (H, W).

    Raises:
        ValueError: for a threshold outside [0, 1].
    """
    check_numbers(threshold=threshold)
    if threshold > 1.0:
        raise ValueError(f"threshold must be at most 1, the whole range of an image, received {threshold!r}")
    return np.where(values.numpy() > threshold, MARKED, 0).astype(np.uint8)


def smoothed_difference(difference: Tensor, smoothing: float) -> Tensor:
    """Smooth each channel of (C, H, W) by a Gaussian of ``smoothing`` pixels; 0 for none.

    Raises:
        ValueError: for a negative smoothing.
    """
    check_numbers(smoothing=smoothing)
    return smoothed(difference[:, None], smoothing)[:, 0]

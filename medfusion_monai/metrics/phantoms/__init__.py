"""Measures on phantoms, real or generated, the property that their class says: does a sample show its label?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from medfusion_monai.metrics.phantoms.chest import measure_cardiothoracic_ratio

__all__ = ["MEASUREMENTS", "Measurement", "class_agreement", "measure_cardiothoracic_ratio"]


class Measurement(NamedTuple):
    """What tells the classes of a modality's phantoms apart: label 0 lies below the threshold, label 1 above."""

    name: str
    measure: Callable[[Any], np.ndarray]
    threshold: float


MEASUREMENTS = {
    "cxr": Measurement("heart width", measure_cardiothoracic_ratio, 0.5),
}


def class_agreement(images: Any, labels: Sequence[int] | np.ndarray, modality: str = "cxr") -> dict[int, float]:
    """Return, per class, the share of images whose measured property lies on the side that their label asks for.

    Args:
        images: array or tensor of shape (N, C, H, W), float in [0, 1].
        labels: 0 for a property below the threshold, 1 for one above, (N,).
        modality: key of ``MEASUREMENTS``.

    Returns:
        Shares in [0, 1] by label; an image that cannot be measured counts as disagreement.
    """
    labels = np.asarray(labels.cpu() if hasattr(labels, "cpu") else labels).astype(int).reshape(-1)
    if len(labels) != len(images) or not set(labels.tolist()) <= {0, 1}:
        raise ValueError(f"labels are {len(labels)} for {len(images)} images: give one, 0 or 1, for each.")
    _, measure, threshold = MEASUREMENTS[modality]
    values = measure(images)
    agrees = np.where(labels == 1, values > threshold, values < threshold)  # NaN compares as False
    return {int(label): float(agrees[labels == label].mean()) for label in np.unique(labels)}

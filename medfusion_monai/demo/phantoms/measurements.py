"""Measures the property that defines the class of phantoms, in drawn and generated images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from medfusion_monai.demo.phantoms.measure_chest import measure_cardiothoracic_ratio
from medfusion_monai.demo.phantoms.measure_fundus import measure_cup_to_disc_ratio
from medfusion_monai.demo.phantoms.measure_histology import measure_lymphocyte_density

__all__ = [
    "MEASUREMENTS",
    "Measurement",
    "class_agreement",
    "measure_cardiothoracic_ratio",
    "measure_cup_to_disc_ratio",
    "measure_lymphocyte_density",
]


class Measurement(NamedTuple):
    """The property that distinguishes the classes of a modality's phantoms by a threshold.

    If ``rising``, label 1 is the class above the threshold; otherwise label 0 is.
    """

    name: str
    measure: Callable[[Any], np.ndarray]
    threshold: float
    rising: bool = True


MEASUREMENTS = {
    "cxr": Measurement("heart width", measure_cardiothoracic_ratio, 0.5),
    "fundus": Measurement("cup-to-disc ratio", measure_cup_to_disc_ratio, 0.51),
    "histo": Measurement("lymphocyte density", measure_lymphocyte_density, 5.5, rising=False),
}


def class_agreement(images: Any, labels: Sequence[int] | np.ndarray, modality: str = "cxr") -> dict[int, float]:
    """Return, per class, the share of images whose measured property is on the side of their label.

    Args:
        images: array or tensor of shape (N, C, H, W), float in [0, 1].
        labels: 0 or 1, (N,).
        modality: key of ``MEASUREMENTS``.

    Returns:
        Shares in [0, 1] by label; an image that cannot be measured counts as disagreement.
    """
    labels = np.asarray(labels.cpu() if hasattr(labels, "cpu") else labels).astype(int).reshape(-1)
    if len(labels) != len(images) or not set(labels.tolist()) <= {0, 1}:
        raise ValueError(f"there are {len(labels)} labels for {len(images)} images: use one per image, 0 or 1.")
    measurement = MEASUREMENTS[modality]
    values = measurement.measure(images)
    above, below = values > measurement.threshold, values < measurement.threshold  # NaN is neither
    agrees = np.where(labels == int(measurement.rising), above, below)
    return {int(label): float(agrees[labels == label].mean()) for label in np.unique(labels)}

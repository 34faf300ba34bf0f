"""Edits of images by a trained model: counterfactuals, interpolation, variations, classes."""

from medfusion_monai.editing.counterfactuals import counterfactual
from medfusion_monai.editing.diffusion_classifier import Calibration, Classification, calibrate, classify
from medfusion_monai.editing.interpolation import interpolate
from medfusion_monai.editing.inversion import Inversion, invert, regenerate
from medfusion_monai.editing.variation import variations

__all__ = [
    "Calibration",
    "Classification",
    "Inversion",
    "calibrate",
    "classify",
    "counterfactual",
    "interpolate",
    "invert",
    "regenerate",
    "variations",
]

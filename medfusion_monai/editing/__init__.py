"""Edits of images by a trained model: counterfactuals, interpolation, variations, classes."""

from medfusion_monai.editing.counterfactuals import counterfactual
from medfusion_monai.editing.diffusion_classifier import Calibration, Classification, calibrate, classify
from medfusion_monai.editing.edit_plan import EditImages, edit_plan
from medfusion_monai.editing.edit_run import Edit, EditPrepareBatch, EditWriter
from medfusion_monai.editing.interpolation import interpolate
from medfusion_monai.editing.inversion import Inversion, invert, regenerate
from medfusion_monai.editing.variation import variations

__all__ = [
    "Calibration",
    "Classification",
    "Edit",
    "EditImages",
    "EditPrepareBatch",
    "EditWriter",
    "Inversion",
    "calibrate",
    "classify",
    "counterfactual",
    "edit_plan",
    "interpolate",
    "invert",
    "regenerate",
    "variations",
]

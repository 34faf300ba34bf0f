"""Edits of images by a trained model: counterfactuals, classes, interpolation, variations, inpainting, anomalies."""

from medfusion_monai.editing.anomaly import AnomalyThreshold, anomaly_map, anomaly_threshold
from medfusion_monai.editing.counterfactuals import counterfactual
from medfusion_monai.editing.diffusion_classifier import Calibration, Classification, calibrate, classify
from medfusion_monai.editing.edit_plan import EditImages, edit_plan
from medfusion_monai.editing.edit_run import Edit, EditPrepareBatch
from medfusion_monai.editing.edit_writer import EditWriter
from medfusion_monai.editing.inpainting import inpaint
from medfusion_monai.editing.interpolation import interpolate
from medfusion_monai.editing.inversion import Inversion, invert, regenerate
from medfusion_monai.editing.known_images import KnownImages
from medfusion_monai.editing.variation import variations

__all__ = [
    "AnomalyThreshold",
    "Calibration",
    "Classification",
    "Edit",
    "EditImages",
    "EditPrepareBatch",
    "EditWriter",
    "Inversion",
    "KnownImages",
    "anomaly_map",
    "anomaly_threshold",
    "calibrate",
    "classify",
    "counterfactual",
    "edit_plan",
    "inpaint",
    "interpolate",
    "invert",
    "regenerate",
    "variations",
]

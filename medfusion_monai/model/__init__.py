"""The Python API: a trained model, built from the description of its weights, and what is made from it."""

from medfusion_monai.model.own_preprocessing import make_preprocessing
from medfusion_monai.model.own_sampler import make_sampler
from medfusion_monai.model.sample_files import save_dicom
from medfusion_monai.model.stored_model import save_model
from medfusion_monai.model.trained_model import Model, load

__all__ = ["Model", "load", "make_preprocessing", "make_sampler", "save_dicom", "save_model"]

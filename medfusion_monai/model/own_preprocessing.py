"""The preprocessing that a model's weights define."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from monai.transforms import Compose

from medfusion_monai.data.reading.transforms import read_and_resize

if TYPE_CHECKING:
    from medfusion_monai.model.trained_model import Model


def make_preprocessing(model: Model, mode: str | None = None, modalities: Sequence[str] | None = None) -> Compose:
    """Return the transform that read a model's training images, to read other images in the same way.

    Args:
        model: defines size, channels, ``resize_mode`` and ``dicom_modalities``.
        mode: another resize mode.
        modalities: other accepted values of DICOM's Modality.

    Raises:
        ValueError: if the training used custom preprocessing.
    """
    form = model.info.get("image", {})
    if form.get("preprocessing") and mode is None:
        raise ValueError(
            f"the training of {model.path} used custom preprocessing ({', '.join(form['preprocessing'])}), which is "
            "not stored with the weights: give the same preprocessing in a config, or a resize_mode for the usual one"
        )
    mode, modalities = mode or form.get("resize_mode") or "crop", modalities or form.get("dicom_modalities")
    return read_and_resize(model.image_size, model.image_channels, mode, modalities)

"""Images as MONAI's federated statistics take them: ``monai.fl.client.MonaiAlgoStats`` expects masks for labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from medfusion_monai.data.reading.images import read_image


class ImageWithClassMask(Transform):
    """Reads an image, and makes a mask of its label: each pixel is of the image's class.

    For ``data_stats_transform_list``. The summary then lists the classes of the images; it does not separate their
    intensities, because MONAI numbers the labels of each image anew.

    Args:
        channels: of the images, 1 or 3; of three, the mean is taken.
        modalities: accepted values of DICOM's Modality; None for projections and photographs.
    """

    def __init__(self, channels: int = 1, modalities: list[str] | None = None) -> None:
        self.channels, self.modalities = channels, modalities

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``image`` and ``label`` (1, H, W) of an entry of a datalist, image in [0, 1]."""
        pixels = torch.from_numpy(read_image(data["image"], self.channels, self.modalities)).mean(0, keepdim=True)
        meta = {"filename_or_obj": data["image"]}
        mask = torch.full_like(pixels, float(data["label"]))
        return {**data, "image": MetaTensor(pixels, meta=dict(meta)), "label": MetaTensor(mask, meta=dict(meta))}

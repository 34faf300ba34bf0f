"""Dictionary transforms that MONAI lacks."""

from medfusion_monai.transforms.images import ReadImaged, ResizeCenterCropd

__all__ = ["ReadImaged", "ResizeCenterCropd"]

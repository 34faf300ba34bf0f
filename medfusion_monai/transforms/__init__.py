"""Dictionary transforms for image files."""

from medfusion_monai.transforms.images import ReadImaged, ResizeCenterCropd, form_of, read_and_resize

__all__ = ["ReadImaged", "ResizeCenterCropd", "form_of", "read_and_resize"]

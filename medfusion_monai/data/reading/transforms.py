"""Dictionary transforms that read image files as tensors of one size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform

from medfusion_monai.data.reading.dicom import check_modalities
from medfusion_monai.data.reading.images import read_image
from medfusion_monai.data.reading.resizing import resize_center_crop, resized_sides


def read_and_resize(
    size: Sequence[int], channels: int = 1, mode: str = "crop", modalities: Sequence[str] | None = None
) -> Compose:
    """Return the transform that reads the image of a datalist item and resizes it.

    Args:
        size: target (H, W).
        channels: 1 (gray) or 3 (RGB); files with other channels raise.
        mode: ``crop`` fills the target and crops the rest; ``pad`` keeps the whole image and adds zeros.
        modalities: accepted values of DICOM's Modality; None accepts all projections and photographs.
    """
    return Compose([ReadImaged("image", channels, modalities), ResizeCenterCropd("image", size, mode)])


def form_of(transform: Any) -> dict[str, Any]:
    """Return the settings of a ``read_and_resize`` transform: ``resize_mode`` and ``dicom_modalities``.

    For any other transform return the names of its steps as ``preprocessing``, which do not suffice to rebuild it.
    """
    steps = _steps(transform)
    if not _reads_and_resizes(steps):
        return {"preprocessing": [type(step).__qualname__ for step in steps]}
    return {"dicom_modalities": steps[0].modalities, "resize_mode": steps[1].mode}


def enlargement_of(transform: Any, shape: Sequence[int]) -> list[float] | None:
    """Return by how much a ``read_and_resize`` transform enlarges height and width of an image of (H, W).

    For any other transform return None, as it may do anything.
    """
    steps = _steps(transform)
    if not _reads_and_resizes(steps):
        return None
    return [resized / side for resized, side in zip(steps[1].resized(shape), shape, strict=True)]


def _steps(transform: Any) -> Sequence[Any]:
    return transform.flatten().transforms if isinstance(transform, Compose) else [transform]


def _reads_and_resizes(steps: Sequence[Any]) -> bool:
    return [type(step) for step in steps] == [ReadImaged, ResizeCenterCropd]


class ReadImaged(MapTransform):
    """Replace a path by the image: a float32 tensor of shape (C, H, W) in [0, 1].

    Args:
        keys: keys of the paths.
        channels: 1 (gray) or 3 (RGB): files with other channels raise; None takes those of each file.
        modalities: accepted values of DICOM's Modality; None accepts all projections and photographs.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ValueError: for other channels, and for modalities that are not a list of names.
    """

    def __init__(
        self,
        keys: KeysCollection,
        channels: int | None = None,
        modalities: Sequence[str] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if channels not in (None, 1, 3):
            raise ValueError(f"channels is {channels!r}: use 1 (gray), 3 (RGB) or None (as in the file).")
        check_modalities(modalities)
        self.channels, self.modalities = channels, modalities

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the images.

        Raises:
            DataError: for a file that is missing, damaged, not an image, of another Modality, or has other channels.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = torch.from_numpy(read_image(result[key], self.channels, self.modalities))
        return result


class ResizeCenterCropd(MapTransform):
    """Resize with antialiasing, keeping the proportions, then crop or pad the centre to the target size.

    Args:
        keys: keys of the images, (C, H, W) in [0, 1].
        size: target (H, W).
        mode: ``crop`` fills the target and crops the rest; ``pad`` keeps the whole image and adds zeros.
        allow_missing_keys: skip keys that an item lacks.
    """

    def __init__(
        self, keys: KeysCollection, size: Sequence[int], mode: str = "crop", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        is_pair = isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 2
        if not is_pair or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in size):
            raise ValueError(f"size is {size!r}: use two positive integers, [height, width].")
        if mode not in ("crop", "pad"):
            raise ValueError(f"mode is {mode!r}: use 'crop' or 'pad'.")
        self.size = (size[0], size[1])
        self.mode = mode

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with images of shape (C, *size), float32 in [0, 1]."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self._resize(torch.as_tensor(result[key], dtype=torch.float32))
        return result

    def resized(self, shape: Sequence[int]) -> list[int]:
        """Return height and width that an image of (H, W) is resized to, before the target is cut out or padded."""
        return resized_sides(shape, self.size, self.mode)

    def _resize(self, image: torch.Tensor) -> torch.Tensor:
        if image.ndim != 3:
            raise ValueError(f"image has shape {tuple(image.shape)} instead of (C, H, W).")
        return resize_center_crop(image, self.size, self.mode)

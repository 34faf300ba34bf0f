"""The masks of ``inpaint``: which file belongs to which image, and reading it as the image is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.transforms import Compose

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.images import read_image
from medfusion_monai.data.reading.transforms import ResizeCenterCropd, form_of

SUFFIXES = (".nii.gz", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".dcm", ".dicom", ".nii")
"""Endings that the name of an edited image loses. Others stay: the parts of a DICOM UID look like endings."""


def read_mask(path: str, image: str, size: Sequence[int], preprocessing: Compose) -> torch.Tensor:
    """Return the mask of an image, (1, *size), booleans, cropped or padded as the preprocessing does the image.

    Raises:
        DataError: for a mask that cannot be read, has another size than the image's file, is empty or covers all.
    """
    pixels, shape = read_image(path), read_image(image).shape
    if pixels.shape[1:] != shape[1:]:
        raise DataError(
            f"{path}: is a mask of {pixels.shape[1]}x{pixels.shape[2]} pixels, but its image {image} has "
            f"{shape[1]}x{shape[2]}. Draw it on the image's own pixels."
        )
    resize = ResizeCenterCropd("mask", [*size], form_of(preprocessing).get("resize_mode", "crop"))
    return fitted_mask(torch.from_numpy(pixels.max(0, keepdims=True) > 0), resize, path, image)


def fitted_mask(marked: torch.Tensor, resize: ResizeCenterCropd, path: str, image: str) -> torch.Tensor:
    """Return a mask (1, H, W), booleans, at the size of the model: what is marked in part is marked.

    Args:
        marked: (1, H, W), true where to sample.
        resize: what the preprocessing does to images; its key is ``mask``.
        path: of the mask, for the error text.
        image: likewise.

    Raises:
        DataError: for a mask that is empty or covers all.
    """
    resized = resize({"mask": marked.float()})["mask"] > 1e-3
    if bool(resized.all()) or not bool(resized.any()):
        what = "covers all of" if bool(resized.all()) else "marks nothing of"
        raise DataError(f"{path}: is a mask that {what} what the model sees of {image}. Values other than 0 mark.")
    return resized


def masks_of(paths: Sequence[str], masks: str | Path | None, needed: bool) -> dict[str, str]:
    """Return the mask's file by that of the image; nothing for an edit without masks.

    Args:
        paths: of the images.
        masks: a file for all, or a folder with one of the same name per image.
        needed: whether the edit takes masks.

    Raises:
        DataError: if the masks do not exist.
        ValueError: for masks that are missing or have no effect.
    """
    if not needed:
        if masks is not None:
            raise ValueError(f"masks {str(masks)!r} have no effect on this edit: leave them out")
        return {}
    if not isinstance(masks, str | Path):
        raise ValueError(
            f"masks must be given for edit inpaint, a file or a folder with a file per image, received {masks}"
        )
    if os.path.isfile(masks):
        return dict.fromkeys(paths, os.path.realpath(masks))
    if not os.path.isdir(masks):
        raise DataError(f"masks: '{masks}' does not exist. Name a file, or a folder with one file per image.")
    known = {bare_name(entry.name): entry.path for entry in os.scandir(os.path.realpath(masks)) if entry.is_file()}
    return {path: known.get(bare_name(os.path.basename(path)), "") for path in paths}


def bare_name(source: str) -> str:
    """Return the name of a file, without the ending of an image's file, its folders joined by two underscores."""
    ending = next((suffix for suffix in SUFFIXES if source.lower().endswith(suffix)), "")
    return source[: len(source) - len(ending)].replace("/", "__")

"""Studies as the model sees them, and results as the study's file has its pixels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.images import read_image
from medfusion_monai.data.reading.nifti import looks_like_nifti, places_in_file
from medfusion_monai.data.reading.transforms import ResizeCenterCropd
from medfusion_monai.model import Model, make_preprocessing
from medfusion_monai.runtime.errors import first_cause

ORIENTATION = 0x0112
"""EXIF's tag of how a photograph is to be turned."""


class Study(NamedTuple):
    """An image that a client has open.

    Attributes:
        path: the file that clients have, whose geometry results get.
        pixels: float32 (C, H, W) in [0, 1], upright, in full.
        image: float32 (C, h, w) in [0, 1], what the model sees of it.
        resize: how the one becomes the other.
    """

    path: str
    pixels: Tensor
    image: Tensor
    resize: ResizeCenterCropd

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in full."""
        return (self.pixels.shape[1], self.pixels.shape[2])


def read_study(path: str, model: Model) -> Study:
    """Read a study as the training images of a model were read.

    Args:
        path: PNG or another format of Pillow, DICOM, or NIfTI. Beside a NIfTI file that MONAI Label made of a DICOM
            series lies a folder with the series: its pixels are read, since the other has neither window nor inversion.
        model: defines size, channels and modalities.

    Raises:
        DataError: for a file that is no image, of another modality or with other channels, and for photographs that
            are stored turned, which clients would show turned.
    """
    form = model.info.get("image", {})
    source = _source_of(path)
    pixels = torch.from_numpy(read_image(source, model.image_channels, form.get("dicom_modalities")))
    _refuse_turned(source)
    try:
        image = torch.as_tensor(make_preprocessing(model)({"image": source})["image"])
    except RuntimeError as error:  # of MONAI's transforms
        raise first_cause(error) from error
    resize = ResizeCenterCropd("mask", model.image_size, form.get("resize_mode") or "crop")
    return Study(path, pixels, image, resize)


def to_study_size(values: Tensor, study: Study) -> Tensor:
    """Enlarge what belongs to the model's image (C, h, w) to the study (C, H, W); beyond the image it continues."""
    rows, columns = study.resize.resized(study.size)
    height, width = values.shape[1:]
    if study.resize.mode == "crop":
        top, left = (rows - height) // 2, (columns - width) // 2
        sides = (left, columns - width - left, top, rows - height - top)
        values = F.pad(values[None], sides, mode="replicate")[0]
    else:
        top, left = (height - rows) // 2, (width - columns) // 2
        values = values[:, top : top + rows, left : left + columns]
    if (rows, columns) != study.size:
        values = F.interpolate(values[None], size=study.size, mode="bilinear", antialias=True)[0]
    return values


def seen_part(study: Study) -> Tensor:
    """Return which pixels of a study (H, W) the model sees: all but what the resizing cuts off."""
    (rows, columns), (height, width) = study.resize.resized(study.size), study.image.shape[1:]
    seen = torch.zeros(rows, columns)
    top, left = max(0, (rows - height) // 2), max(0, (columns - width) // 2)
    seen[top : top + height, left : left + width] = 1.0
    return F.interpolate(seen[None, None], size=study.size, mode="nearest-exact")[0, 0] > 0


def in_file_order(upright: np.ndarray, path: str) -> np.ndarray:
    """Return an upright map (H, W), or image (H, W, C), with rows and columns as the study's file has them."""
    places = _places(path)
    if places is None:
        return upright
    turned = np.empty(upright.shape, upright.dtype).reshape(-1, *upright.shape[2:])
    turned[places.ravel()] = upright.reshape(-1, *upright.shape[2:])
    return turned.reshape(*(_file_size(path) or ()), *upright.shape[2:])


def upright_mask(mask: np.ndarray, study: Study) -> Tensor:
    """Return a client's mask, rows and columns as in the study's file, upright: (1, H, W), booleans.

    Raises:
        DataError: for a mask of another size.
    """
    expected = _file_size(study.path) or study.size
    if mask.shape != tuple(expected):
        raise DataError(
            f"the label has {mask.shape[-1]}x{mask.shape[-2]} pixels, but the study {expected[1]}x{expected[0]}: draw "
            "it on the study itself."
        )
    places = _places(study.path)
    return torch.from_numpy((mask if places is None else mask.ravel()[places]) != 0)[None]


def series_folder(path: str) -> Path:
    """Return the folder of the DICOM series that a NIfTI file was made of, which need not exist."""
    return Path(path.removesuffix(".gz").removesuffix(".nii"))


def _source_of(path: str) -> str:
    folder = series_folder(path)
    if str(folder) == path or not folder.is_dir():
        return path
    files = sorted(entry.path for entry in os.scandir(folder) if entry.is_file())
    if len(files) != 1:
        raise DataError(f"the series has {len(files)} images, and the model takes one: choose a series of one image.")
    return files[0]


def _refuse_turned(path: str) -> None:
    try:
        with Image.open(path) as file:
            turned = file.getexif().get(ORIENTATION, 1)
    except OSError:  # not a format of Pillow
        return
    if turned != 1:
        raise DataError(f"{path}: is stored turned (EXIF orientation {turned}). Save it upright.")


def _is_nifti(path: str) -> bool:
    with open(path, "rb") as file:
        return looks_like_nifti(file.read(352))


def _places(path: str) -> np.ndarray | None:
    return places_in_file(Path(path)) if _is_nifti(path) else None


def _file_size(path: str) -> tuple[int, int] | None:
    """Return rows and columns of a NIfTI file as clients read it; None for files that are stored upright."""
    if not _is_nifti(path):
        return None
    import nibabel as nib

    nx, ny = nib.load(path).shape[:2]  # type: ignore[attr-defined]
    return (ny, nx)

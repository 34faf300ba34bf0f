"""Uploaded files, read as every other image is, and kept nowhere.

    read_upload(studio, content, name) -> Tensor (1, C, H, W) in [0, 1], of the model's size
    read_upload_mask(studio, content, name, image_content, image_name) -> Tensor (1, 1, H, W), booleans
    file_name(name) -> str, what a browser calls a file, without folders and control characters

Both raise an ``UploadError`` whose text names the file and what to do.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.editing.edit_masks import read_mask
from medfusion_monai.model import make_preprocessing
from medfusion_monai.runtime.errors import first_cause
from medfusion_monai.studio.service import Studio

LONGEST_NAME = 100


class UploadError(ValueError):
    """An upload that cannot be used."""


class UploadTooLargeError(UploadError):
    """An upload of more bytes than the limit."""


def read_upload(studio: Studio, content: bytes, name: str) -> Tensor:
    """Read an image as the model's training images were read.

    Files that are marked as synthetic are read like others.

    Args:
        studio: with the model and the limits.
        content: of the file: DICOM, NIfTI, PNG, JPEG or another format of ``read_image``.
        name: of the file, for messages.

    Returns:
        (1, C, H, W) in [0, 1], float32, of the model's size.

    Raises:
        UploadError: for a file that is too large, not a single image, damaged, of a DICOM Modality that the training
            did not accept, or of other channels than the model's.
    """
    preprocessing = make_preprocessing(studio.model)
    with _files(studio, (name, content)) as (path,):
        return torch.as_tensor(preprocessing({"image": path})["image"])[None]


def read_upload_mask(studio: Studio, content: bytes, name: str, image_content: bytes, image_name: str) -> Tensor:
    """Read a mask, drawn on the pixels of its image's file: values other than 0 mark what to sample.

    Args:
        studio: with the model and the limits.
        content: of the mask's file.
        name: of the mask's file.
        image_content: of the image's file.
        image_name: of the image's file.

    Returns:
        (1, 1, H, W), booleans, of the model's size.

    Raises:
        UploadError: as in ``read_upload``, and for a mask of another size than its image, that is empty, or that
            covers all of it.
    """
    model = studio.model
    with _files(studio, (name, content), (image_name, image_content)) as (mask, image):
        return read_mask(mask, image, model.image_size, make_preprocessing(model))[None]


def file_name(name: str) -> str:
    """Return the name of a file without folders and control characters, at most 100 characters, as browsers give it."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in last if character.isprintable())[-LONGEST_NAME:] or "upload"


@contextmanager
def _files(studio: Studio, *uploads: tuple[str, bytes]) -> Iterator[list[str]]:
    """Yield paths of (name, content), for readers that need one, and name the files as the user does in errors."""
    most = studio.limits.upload_bytes
    for name, content in uploads:
        if len(content) > most:
            sizes = f"{len(content) / 2**20:.1f} MiB, more than {most / 2**20:g}"
            raise UploadTooLargeError(f"{file_name(name)} has {sizes}: reduce its size")
    with ExitStack() as open_files:
        paths = [open_files.enter_context(_in_memory(content)) for _, content in uploads]
        try:
            yield paths
        except Exception as error:
            cause = first_cause(error)
            if not isinstance(cause, DataError):
                raise
            text = str(cause)
            for path, (name, _) in zip(paths, uploads, strict=True):
                text = text.replace(path, file_name(name))
            raise UploadError(text) from error


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Yield the path of a file in memory, or, where the system has none, in a private folder that is removed."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("upload"), "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "upload"
            path.write_bytes(content)
            yield str(path)

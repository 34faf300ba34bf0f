"""Phantoms: drawn images whose class is a measurable property, for tests and demonstrations."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from medfusion_monai.data.datalist import DATALIST_NAME
from medfusion_monai.data.pixels import digests_of, record_digests
from medfusion_monai.data.preparing.new_datalist import make_datalist, refuse_other_datalist, write_datalist
from medfusion_monai.data.preparing.splits import DEFAULT_FRACTIONS, DataError, split_by_patient
from medfusion_monai.demo.phantoms import draw_chest as chest
from medfusion_monai.demo.phantoms import draw_fundus as fundus
from medfusion_monai.demo.phantoms import draw_histology as histology
from medfusion_monai.demo.phantoms.draw_chest import draw_chest_phantom
from medfusion_monai.demo.phantoms.draw_fundus import draw_fundus_phantom
from medfusion_monai.demo.phantoms.draw_histology import draw_histology_phantom
from medfusion_monai.runtime.files import make_folders

__all__ = [
    "FAMILIES",
    "PhantomFamily",
    "draw_chest_phantom",
    "draw_fundus_phantom",
    "draw_histology_phantom",
    "family_of_classes",
    "prepare_phantoms",
]


class PhantomFamily(NamedTuple):
    """The phantoms of one modality.

    ``draw(seed, label, size)`` returns the image, float32 of shape (C, H, W) in [0, 1], and its ground truth.
    """

    title: str
    class_names: tuple[str, str]
    draw: Callable[..., tuple[np.ndarray, dict[str, float]]]


FAMILIES = {
    "cxr": PhantomFamily("chest X-ray", chest.CLASS_NAMES, draw_chest_phantom),
    "fundus": PhantomFamily("eye fundus", fundus.CLASS_NAMES, draw_fundus_phantom),
    "histo": PhantomFamily("histology", histology.CLASS_NAMES, draw_histology_phantom),
}


def family_of_classes(class_names: Sequence[str]) -> str:
    """Return the modality whose phantoms have these class names.

    Raises:
        DataError: if there are none.
    """
    for modality, family in FAMILIES.items():
        if family.class_names == tuple(class_names):
            return modality
    known = ", ".join(f"{modality} {list(family.class_names)}" for modality, family in FAMILIES.items())
    raise DataError(f"there are no phantoms of the classes {list(class_names)}, only of {known}.")


def prepare_phantoms(
    output: str | os.PathLike[str],
    num_images: int = 2000,
    size: int | tuple[int, int] = 64,
    seed: int = 0,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
    modality: str = "cxr",
) -> dict[str, Any]:
    """Write phantoms as 8-bit PNG files, gray or RGB, alternating between the classes, and their datalist.

    Args:
        output: folder for ``datalist.json`` and ``images``.
        num_images: total number of images; each is its own patient.
        size: pixels, one number for both sides or (H, W).
        seed: seed of the images and the split.
        fractions: shares for training, validation and test.
        class_names: names of labels 0 and 1; None takes the family's own.
        overwrite: replace a different datalist.
        modality: key of ``FAMILIES``.

    Returns:
        The datalist.

    Raises:
        DataError: if the folder has a different datalist, or there are too few images to split.
        ValueError: if the folder cannot be written.
    """
    if modality not in FAMILIES:
        raise DataError(f"modality is {modality!r}: there are phantoms of {', '.join(FAMILIES)}.")
    family = FAMILIES[modality]
    names = family.class_names if class_names is None else class_names
    if len(names) != 2 or len(set(names)) != 2:
        raise DataError(f"class_names are {list(names)}: use two different names, since phantoms have two classes.")
    records: list[dict[str, Any]] = [
        {"image": f"images/phantom_{index:06d}.png", "label": index % 2, "patient": f"phantom_{index:06d}"}
        for index in range(num_images)
    ]
    splits = split_by_patient(records, fractions, seed, names)
    height, width = (size, size) if isinstance(size, int) else size
    source = f"generated {family.title} phantoms, {height}x{width} pixels"
    output = Path(output)
    if not overwrite:
        refuse_other_datalist(output / DATALIST_NAME, make_datalist(splits, names, source, seed))
    make_folders([output / "images"])
    for index, record in enumerate(records):
        image, _ = family.draw(seed * 1_000_003 + index, record["label"], size)
        pixels = np.rint(image * 255).astype(np.uint8).transpose(1, 2, 0)  # (C, H, W) -> (H, W, C)
        try:
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(output / record["image"])
        except OSError as error:
            raise DataError(
                f"{output}: cannot be written: {error.strerror or error}. Choose another --output."
            ) from error
    for items in splits.values():
        record_digests(items, digests_of([{"image": output / item["image"]} for item in items]))
    return write_datalist(output / DATALIST_NAME, splits, names, source, seed)

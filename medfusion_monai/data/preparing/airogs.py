"""Prepares AIROGS, eye fundus photographs with and without referable glaucoma, from the original download."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.data.preparing.csv_table import read_columns
from medfusion_monai.data.preparing.download import (
    Download,
    Record,
    refuse_no_folder,
    refuse_repeats,
    walk_images,
    write_download,
    wrong_value,
)
from medfusion_monai.data.preparing.splits import DEFAULT_FRACTIONS, DataError

logger = logging.getLogger(__name__)

CLASS_NAMES = ("no_referable_glaucoma", "referable_glaucoma")
REFERENCE_SIZE = 3270
PAPER: dict[str, Any] = {
    "all": {"images": dict(zip(CLASS_NAMES, (98172, 3270), strict=True)), "patients": 60357},
    "reference": {"images": dict.fromkeys(CLASS_NAMES, REFERENCE_SIZE), "patients": None},
}
TABLE = "train_labels.csv"
IDENTIFIER, CLASS = "challenge_id", "class"
LABELS = {"NRG": 0, "RG": 1}
SUFFIXES = (".jpg", ".jpeg", ".png")
PATIENTS_UNKNOWN = (
    "AIROGS does not say which images are of one patient: each image counts as a patient of its own, so that eyes of "
    "one person may be in training and test, which makes results look better than they are."
)


def prepare_airogs(
    root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    seed: int = 0,
    overwrite: bool = False,
    allow_missing: bool = False,
    check: bool = False,
) -> dict[str, Any]:
    """Write the datalist of the AIROGS training set. NRG is class 0, RG is class 1.

    The source names no patients: each image is one of its own, which a warning and ``source`` say. The reference
    batch is balanced: all images of the smaller class, up to the paper's 3,270, and as many of the other.

    Args:
        root: folder that holds ``train_labels.csv`` and, in it or anywhere below, images named ``<challenge_id>.jpg``.
        output: folder for ``datalist.json``, which points at the images where they are.
        fractions: shares of the images for training, validation and test.
        seed: of the splits and of the reference batch.
        overwrite: replace a datalist that differs.
        allow_missing: leave out images that are not on the disk instead of raising.
        check: decode every image before anything is written.

    Returns:
        What was written.

    Raises:
        DataError: no such download, a table of other columns or values, an image found twice, or what
            ``write_download`` refuses.
    """
    folder = refuse_no_folder(root)
    if not (folder / TABLE).is_file():
        raise DataError(f"root '{root}' holds no {TABLE}. Put the AIROGS labels there, or correct --root.")
    labels = read_airogs_table(folder / TABLE)
    logger.warning(PATIENTS_UNKNOWN)
    download = Download(
        folder=folder,
        records=_locate(labels, folder),
        class_names=CLASS_NAMES,
        channels=3,
        source=f"AIROGS, {TABLE}, patients unknown: each image its own patient",
        reference_size=REFERENCE_SIZE,
        paper=PAPER,
    )
    return write_download(download, output, fractions, seed, overwrite, allow_missing, check)


def read_airogs_table(path: Path) -> dict[str, int]:
    """Read ``train_labels.csv``.

    Returns:
        The label of each ``challenge_id``.

    Raises:
        DataError: naming the line, for values outside the rule and for repeated images.
    """
    advice = f"{TABLE} has to be that of the original AIROGS download: correct --root."
    rows, lines = read_columns(path, (IDENTIFIER, CLASS), advice)
    for row, line in zip(rows, lines, strict=True):
        if not row[IDENTIFIER].strip() or "/" in row[IDENTIFIER]:
            raise wrong_value(path, line, IDENTIFIER, row[IDENTIFIER], "the name of an image without its suffix")
        if row[CLASS].strip() not in LABELS:
            raise wrong_value(path, line, CLASS, row[CLASS], "RG or NRG")
    identifiers = [row[IDENTIFIER].strip() for row in rows]
    refuse_repeats(path, IDENTIFIER, identifiers, lines)
    return {name: LABELS[row[CLASS].strip()] for name, row in zip(identifiers, rows, strict=True)}


def _locate(labels: dict[str, int], root: Path) -> list[Record]:
    """Find each image below the root; one that is nowhere gets the place where it would be."""
    places: dict[str, str] = {}
    unlisted = 0
    for folder, name in walk_images(root, SUFFIXES):
        identifier, place = os.path.splitext(name)[0], f"{folder}/{name}".lstrip("/")
        if identifier not in labels:
            unlisted += 1
        elif identifier in places:
            raise DataError(
                f"root '{root}' holds image '{identifier}' twice: {places[identifier]} and {place}. Remove one of them."
            )
        else:
            places[identifier] = place
    if unlisted:
        logger.warning("%d images below '%s' have no row in %s and are not used.", unlisted, root, TABLE)
    return [
        {"image": places.get(identifier, f"{identifier}{SUFFIXES[0]}"), "label": label, "patient": identifier}
        for identifier, label in labels.items()
    ]

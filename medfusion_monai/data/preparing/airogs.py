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
    "AIROGS does not identify patients: each image counts as its own patient. Both eyes of a person may be in training "
    "and test, which makes results look better than they are."
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

    AIROGS does not identify patients: each image is its own, as a warning and ``source`` state. The reference batch
    is balanced: all images of the smaller class, up to the paper's 3,270, and as many of the other.

    Args:
        root: folder of ``train_labels.csv``, with images named ``<challenge_id>.jpg`` at any depth.
        output: folder for ``datalist.json``, which points to the images.
        fractions: shares of the images for training, validation and test.
        seed: seed of the splits and the reference batch.
        overwrite: replace a different datalist.
        allow_missing: leave out missing images instead of raising.
        check: decode every image before writing.

    Returns:
        The datalist that was written.

    Raises:
        DataError: for a missing table, wrong columns or values, an image found twice, and as ``write_download``.
    """
    folder = refuse_no_folder(root)
    if not (folder / TABLE).is_file():
        raise DataError(f"root '{root}' does not contain {TABLE}. Put the AIROGS labels there, or correct --root.")
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
    """Return the label of each ``challenge_id`` in ``train_labels.csv``.

    Raises:
        DataError: for invalid values and repeated images, with the line.
    """
    advice = f"{TABLE} must be the file of the original AIROGS download: correct --root."
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
    """Return a record per labelled image below the root; a missing one gets the path where it is expected."""
    places: dict[str, str] = {}
    unlisted = 0
    for folder, name in walk_images(root, SUFFIXES):
        identifier, place = os.path.splitext(name)[0], f"{folder}/{name}".lstrip("/")
        if identifier not in labels:
            unlisted += 1
        elif identifier in places:
            raise DataError(
                f"root '{root}' contains image '{identifier}' twice: {places[identifier]} and {place}. "
                "Remove one of them."
            )
        else:
            places[identifier] = place
    if unlisted:
        logger.warning("%d images below '%s' are not listed in %s and are not used.", unlisted, root, TABLE)
    return [
        {"image": places.get(identifier, f"{identifier}{SUFFIXES[0]}"), "label": label, "patient": identifier}
        for identifier, label in labels.items()
    ]

"""Prepares CheXpert, frontal chest X-rays with and without cardiomegaly, from the original download."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.data.preparing.csv_table import read_columns
from medfusion_monai.data.preparing.download import (
    Download,
    Record,
    refuse_no_folder,
    refuse_repeats,
    write_download,
    wrong_value,
)
from medfusion_monai.data.preparing.splits import DEFAULT_FRACTIONS, DataError

CLASS_NAMES = ("no_cardiomegaly", "cardiomegaly")
REFERENCE_SIZE = 7869
PAPER: dict[str, Any] = {
    "all": {"images": dict(zip(CLASS_NAMES, (160935, 30092), strict=True)), "patients": 64534},
    "reference": {"images": dict.fromkeys(CLASS_NAMES, REFERENCE_SIZE), "patients": None},
}
TABLE = "train.csv"
PATH, VIEW, FINDING = "Path", "Frontal/Lateral", "Cardiomegaly"
IMAGE = re.compile(r"CheXpert-v1\.0(?:-small)?/(train/(patient\d+)/study\d+/[^/]+)")
FINDINGS = {"1.0": 1, "1": 1, "0.0": 0, "0": 0, "-1.0": -1, "-1": -1, "": None}


def prepare_chexpert(
    root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    seed: int = 0,
    overwrite: bool = False,
    allow_missing: bool = False,
    check: bool = False,
) -> dict[str, Any]:
    """Write the datalist of CheXpert's ``train.csv``; ``valid.csv`` is not used.

    Frontal views only. ``Cardiomegaly`` 1 and -1 (uncertain) are class 1, 0 and blank are class 0. Splits are by
    patient.

    The paper's reference batch has 2 x 7,869 images, but does not list them. 7,869 is the number of explicit negatives
    (0): these are class 0, and class 1 are as many explicit positives (1), drawn with the seed.

    Args:
        root: folder ``CheXpert-v1.0`` or ``CheXpert-v1.0-small``, or its parent folder.
        output: folder for ``datalist.json``, which points to the images.
        fractions: shares of the patients for training, validation and test.
        seed: seed of the splits and the reference batch.
        overwrite: replace a different datalist.
        allow_missing: leave out missing images instead of raising.
        check: decode every image before writing.

    Returns:
        The datalist that was written.

    Raises:
        DataError: for a missing table, wrong columns or values, and as ``write_download``.
    """
    folder = _find_download(refuse_no_folder(root))
    records, lateral = read_chexpert_table(folder / TABLE)
    download = Download(
        folder=folder,
        records=records,
        class_names=CLASS_NAMES,
        channels=1,
        source=(
            f"CheXpert, {TABLE}, frontal views, {FINDING} 1 and -1 positive, 0 and blank negative, "
            "patients by Path, valid.csv not used"
        ),
        reference_size=REFERENCE_SIZE,
        paper=PAPER,
        counts={"lateral": lateral} if lateral else {},
    )
    return write_download(download, output, fractions, seed, overwrite, allow_missing, check)


def read_chexpert_table(path: Path) -> tuple[list[Record], int]:
    """Read the frontal views of ``train.csv``.

    Returns:
        Records with ``image`` (relative to the table's folder), ``label``, ``patient`` and ``comparable`` (False if
        the finding is uncertain or blank); and the number of lateral views.

    Raises:
        DataError: for invalid values and repeated images, with the line.
    """
    advice = f"{TABLE} must be the file of the original CheXpert download: correct --root."
    rows, lines = read_columns(path, (PATH, VIEW, FINDING), advice)
    records = [_parse(path, row, line) for row, line in zip(rows, lines, strict=True)]
    refuse_repeats(path, PATH, [record["image"] for record in records], lines)
    frontal = [record for record in records if record.pop("view") == "Frontal"]
    return frontal, len(records) - len(frontal)


def _parse(path: Path, row: dict[str, str], line: int) -> Record:
    image = IMAGE.fullmatch(row[PATH].strip())
    if image is None:
        expected = "CheXpert-v1.0/train/patientNNNNN/studyN/FILE, or the same below CheXpert-v1.0-small"
        raise wrong_value(path, line, PATH, row[PATH], expected)
    view, finding = row[VIEW].strip(), row[FINDING].strip()
    if view not in ("Frontal", "Lateral"):
        raise wrong_value(path, line, VIEW, row[VIEW], "Frontal or Lateral")
    if finding not in FINDINGS:
        raise wrong_value(path, line, FINDING, row[FINDING], "1, 0, -1 or blank")
    value = FINDINGS[finding]
    return {
        "image": image[1],
        "label": int(value in (1, -1)),
        "patient": image[2],
        "comparable": value in (0, 1),
        "view": view,
    }


def _find_download(root: Path) -> Path:
    if (root / TABLE).is_file():
        return root
    found = sorted(path.parent for path in root.glob(f"CheXpert-v1.0*/{TABLE}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"root '{root}' contains {[path.name for path in found]}. Pass one of them as --root.")
    raise DataError(
        f"neither root '{root}' nor a folder CheXpert-v1.0 or CheXpert-v1.0-small in it contains {TABLE}. "
        "Pass the folder of the original CheXpert download as --root."
    )
